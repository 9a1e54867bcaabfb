"""Files that a command writes: checked before the work starts, each written whole or not at all."""

import csv
import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from snn.runtime.errors import UserError, check
from snn.runtime.progress import warn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from snn.runtime.cli import RunOptions


def beside(path: Path, ending: str) -> Path:
    """``path`` without its suffix, plus ``ending``: where a figure of that file goes."""
    return path.parent / f"{path.stem}{ending}"


def check_outputs(*paths: Path | None, inputs: Iterable[Path] = ()) -> None:
    """Raise :class:`UserError` unless each path (None is skipped) can be created or replaced; leaves no trace.

    They must differ from each other and from ``inputs``, which would be lost.
    """
    taken = {path.resolve(): "is read by this command" for path in inputs}
    for path in paths:
        if path is None:
            continue
        folder = path.parent
        check(folder.is_dir(), f"cannot write {path}: folder {folder} does not exist; create it first")
        check(not path.is_dir(), f"cannot write {path}: it is a folder; give a file name inside it")
        check(path.is_file() or not path.exists(), f"cannot write {path}: it is not a regular file; give another name")
        reason = taken.get(path.resolve())
        check(reason is None, f"cannot write {path}: it {reason}; give another name")
        taken[path.resolve()] = "is also the name of another output (or figure)"
        try:
            # Permission bits say nothing of root or a read-only mount: try.
            handle, probe = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.")
            os.close(handle)
            os.unlink(probe)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; choose a folder you can write to") from error


class Outputs:
    """The files of one command: checked before its work, named at its end.

    Args:
        files: that it always writes (None is skipped), the most important first.
        options: whether figures and JSON are wanted.
        figures: that it also draws, unless ``options`` say no.
        inputs: files that it reads, which must not be replaced.

    Raises:
        UserError: a file that cannot be written, or that is an input, or named twice.
    """

    def __init__(
        self, *files: Path | None, options: "RunOptions", figures: Iterable[Path] = (), inputs: Iterable[Path] = ()
    ) -> None:
        drawn = tuple(figures)
        if not (options.figures or drawn):
            warn("--no-figures has no effect: this command draws none")
        self.figures = drawn if options.figures else ()
        """Pictures to draw; none with ``--no-figures``."""
        self._files, self._json = [file for file in files if file is not None], options.json
        check_outputs(*self._files, self._json, *self.figures, inputs=inputs)

    def finish(self, printed: dict, note: str = "") -> None:
        """Write the figures that were ``printed`` as JSON, and say what was written where; ``note`` follows."""
        write_json(self._json, printed)
        if written := [str(path) for path in (*self._files, *self.figures, self._json) if path]:
            print("wrote " + ", ".join(written) + note)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary path beside ``path``, sync it, then rename it to ``path``.

    Whatever goes wrong, an older file at ``path`` stays as it was. What the system refuses, as where a disk is full, is
    a :class:`UserError` with the reason.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error)
        remedy = "free some space, or write elsewhere" if full else "give another name, or write elsewhere"
        raise UserError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path | None, figures: dict) -> None:
    """Write the figures a command printed to ``path`` (None: do nothing)."""
    if path is not None:
        text = json.dumps(figures, indent=2, allow_nan=False) + "\n"
        write_atomically(path, lambda temporary: temporary.write_text(text))


def write_csv(path: Path | None, rows: list[dict]) -> None:
    """Write rows with equal keys in long format to ``path`` (None: do nothing)."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    if path is not None:
        write_atomically(path, write)


def _draw_literally(figure: "Figure") -> None:
    """Turn the parser of formulas off, except for powers of ten beside an axis."""
    # Imported here: commands that draw nothing need not wait for it.
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter

    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    logarithmic = [axis for axis in axes if isinstance(axis.get_major_formatter(), LogFormatter)]
    powers = {label for axis in logarithmic for label in axis.get_ticklabels(which="both")}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text not in powers:
            text.set_parse_math(False)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a matplotlib figure to ``path`` (PNG), whole or not at all; needs no display.

    Texts are drawn as they are: a dollar sign in a name starts no formula.
    """
    _draw_literally(figure)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, metadata={"Software": None}))
