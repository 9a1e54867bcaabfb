"""What is shown while a layer learns: speed, activity, and warnings where nothing is learned."""

import math
import sys
from pathlib import Path
from time import perf_counter

import torch

from snn.learning import Learning
from snn.network import LayerHistory, LearnedLayer
from snn.runtime.processes import Processes
from snn.runtime.progress import progress, warn

try:
    import resource
except ImportError:
    # Not a POSIX system.
    resource = None  # type: ignore[assignment]

PATIENCE = 20
"""Updates without a spike or without a change after which a warning is due."""


class Monitor:
    """Progress of one layer, shown by the first process."""

    def __init__(self, number: int, p: Learning, images: int, history: LayerHistory, processes: Processes) -> None:
        self._p, self._name = p, f"layer {number + 1} of {len(p.maps)}"
        self._shown, self._warned = processes.first, False
        self._done, self._began = len(history.images), perf_counter()
        self._bar = progress(None, self._name, "update", total=p.updates(images), initial=self._done)
        self._bar.disable |= not self._shown
        self._history = history

    def report(self, history: LayerHistory) -> None:
        """After an update."""
        self._history = history
        self._bar.update()
        if len(history.images) % PATIENCE == 0:
            self._bar.set_postfix_str(self._describe(), False)
            self._warn()

    def close(self) -> None:
        """The layer has learned: one line of figures stays."""
        self._bar.close()
        if self._shown and len(self._history.images) > self._done:
            self._warn()
            print(f"{self._name}: {self._describe()}", flush=True)

    def _describe(self) -> str:
        """Speed since this process began, and activity over the last updates."""
        images, wins = self._history.images, self._history.wins
        recent = wins[-PATIENCE:]
        shown = (images[-1] - (images[-PATIENCE - 1] if len(images) > PATIENCE else 0)).item()
        seen = (images[-1] - (images[self._done - 1] if self._done else 0)).item()
        speed = seen / (perf_counter() - self._began)
        return (
            f"{speed:.0f} images/s, {speed * self._p.encoding.n_steps:.0f} steps/s, "
            f"{recent.sum().item() / shown:.0f} spikes/image, {(recent.sum(0) > 0).sum().item()} maps active, "
            f"mean |dG| {self._history.mean_change[-PATIENCE:].mean():.2g}, peak memory {peak_memory():.1f} GiB"
        )

    def _warn(self) -> None:
        recent = self._history.wins[-PATIENCE:]
        if self._warned or not self._shown:
            return
        if not recent.any():
            message = "fires no spike; raise `start_count`, or lower `v_threshold` or `threshold_range`"
        elif not self._history.mean_change[-PATIENCE:].any():
            message = (
                "fires, but its conductances do not change; raise `alpha_p` and `alpha_d`, or `gamma_p` and `gamma_d`"
            )
        else:
            return
        self._warned = True
        warn(f"{self._name} {message} (seen over {len(recent)} updates)")


def peak_memory() -> float:
    """Most memory that this process has held, in GiB: on the CUDA device where there is one, else of the process.

    NaN where the system does not tell.
    """
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")
    if status.exists():
        # Linux's ru_maxrss starts at that of the process that started this one.
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**20
    if resource is None:
        return math.nan
    # The unit is KiB, on macOS bytes.
    scale = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30


def layer_figures(learned: LearnedLayer) -> dict[str, float]:
    """What is worth knowing of a learned layer, with units in the names."""
    wins = learned.history.wins
    return {
        "maps": learned.layer.geometry.maps,
        "updates": len(wins),
        "mean_conductance_change_from_start": learned.mean_move,
        "winning_maps_share": learned.winning_share,
        "smallest_share_of_spikes_over_fair_share": learned.fair_shares.min().item(),
        "largest_share_of_spikes_over_fair_share": learned.fair_shares.max().item(),
        "spikes_per_image": wins.sum().item() / learned.history.images[-1].item(),
        "saturated_ltp_share_of_events": learned.saturated[0],
        "saturated_ltd_share_of_events": learned.saturated[1],
        "gain_at_start_current_per_conductance": learned.learning_gain,
        "v_threshold_mV": learned.layer.v_threshold[0].item(),
        "mean_output_rate_Hz": learned.mean_rate,
    }
