"""The verdict of a command: what was measured, what was allowed, and the exit status."""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from snn.runtime.outputs import Outputs

FALSE_ALARM = 1e-3
"""Probability that a command reports a difference although both sides agree, over all its statistical tests."""


@dataclass
class Report:
    """Comparisons of one command, printed as they are made."""

    command: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self, comparison: str, measured: str, allowed: str, agrees: bool, *, of: int, figures: Iterable[float] = ()
    ) -> None:
        """Print and keep one comparison; ``measured`` and ``allowed`` are figures with their units.

        It is of so many things (spikes, draws, networks). A comparison of nothing never agrees, and neither does one
        whose ``figures``, on which ``agrees`` depends, are not all finite.
        """
        if of < 1:
            agrees, measured = False, f"{measured}; nothing was there to be compared"
        elif not all(map(math.isfinite, figures)):
            agrees, measured = False, f"{measured}; not all figures are finite"
        row = {"comparison": comparison, "measured": measured, "allowed": allowed, "agrees": bool(agrees)}
        self.rows.append(row)
        line = f"  {'agrees' if agrees else 'DIFFERS':8}{comparison}: {measured} (allowed: {allowed})"
        # On a terminal a progress bar may stand where the line goes.
        if sys.stderr.isatty():
            tqdm.write(line)
        else:
            print(line, flush=True)

    @property
    def agrees(self) -> bool:
        """All comparisons agree, and there was at least one."""
        return bool(self.rows) and all(row["agrees"] for row in self.rows)

    def close(self, outputs: Outputs, figures: dict) -> int:
        """Print the verdict, finish ``outputs`` with it and with ``figures``, and return the exit status 0 or 1."""
        agreeing = sum(row["agrees"] for row in self.rows)
        verdict = "agree" if self.agrees else "DISAGREE"
        print(f"{self.command}: {verdict} ({agreeing} of {len(self.rows)} comparisons agree)")
        outputs.finish({"verdict": verdict.lower(), "comparisons": self.rows, **figures})
        return 0 if self.agrees else 1
