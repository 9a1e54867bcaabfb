"""``progress.ckpt``: where a training stands. It is checked before anything is made of it; the one before is kept, too.

A file is one line (schema, SHA-256 and size of what follows) and then PyTorch's archive of Lightning's checkpoint.
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from snn.data_source import IMAGES
from snn.runtime.errors import UserError, check
from snn.runtime.outputs import write_atomically
from snn.runtime.processes import joined
from snn.runtime.ranges import NODES, PROCESSES, THREADS

PROGRESS = "progress.ckpt"
"""The newest checkpoint of a training."""
PREVIOUS = "progress.previous.ckpt"
"""The one before, which is taken where the newest is damaged."""
SCHEMA = "safe-dnn-training/1"
KINDS: dict[str, type] = {
    "identity": str,
    "threads": int,
    "global_step": int,
    "epoch": int,
    "pytorch-lightning_version": str,
    "state_dict": dict,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "history": dict,
    "sums": dict,
}
"""What a checkpoint must hold, and of what type."""


class CheckpointFiles(CheckpointIO):
    """How Lightning reads and writes checkpoints; a whole one that is replaced becomes :data:`PREVIOUS`."""

    _written: Path | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path, archive = Path(path), io.BytesIO()
        torch.save(checkpoint, archive)
        payload = archive.getbuffer()
        header = f"{SCHEMA} {hashlib.sha256(payload).hexdigest()} {len(payload)}\n".encode()

        # What this process wrote need not be read again.
        whole = (path == self._written and path.exists()) or _whole(path)

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                file.write(header)
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            # Only now, so that there is hardly a moment without a newest one.
            if whole:
                os.replace(path, path.with_name(PREVIOUS))

        write_atomically(path, write)
        self._written = path

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        # Other nodes may not see the file.
        return joined().share(lambda: read_checkpoint(Path(path)))

    def remove_checkpoint(self, path: str | Path) -> None:
        remove_checkpoints(Path(path).parent)


def remove_checkpoints(folder: Path) -> None:
    """Remove both checkpoints of a training, which has ended."""
    for name in (PROGRESS, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU, with the keys and types of :data:`KINDS`.

    No code of the file runs. Raises :class:`UserError` for a damaged, foreign or older file.
    """
    payload = _payload(path)
    try:
        with zipfile.ZipFile(payload) as archive:
            members = archive.infolist()
        # PyTorch never compresses: nothing can grow as it is read.
        check(sum(member.file_size for member in members) <= len(payload.getbuffer()), "its parts are packed")
        payload.seek(0)
        checkpoint = torch.load(payload, map_location="cpu", weights_only=True)
    except Exception as error:
        # Anybody can compute a digest, and what is no checkpoint fails anywhere in PyTorch's reader.
        raise _refusal(path, "PyTorch does not read it") from error
    if not isinstance(checkpoint, dict):
        raise _refusal(path, f"it holds a {type(checkpoint).__name__}")
    for name, kind in KINDS.items():
        if not isinstance(checkpoint.get(name), kind):
            raise _refusal(path, f"its {name} is missing or no {kind.__name__}")
    return checkpoint


def check_values(
    path: Path,
    checkpoint: Mapping[str, Any],
    state: Mapping[str, Tensor],
    history: Mapping[str, Any],
    averages: bool,
    before: int = 0,
) -> None:
    """Raise :class:`UserError` unless the values of a checkpoint are those of a training like this one.

    ``state`` is that of the module, ``history`` has the names that the stored one must have, ``averages``: the training
    keeps an average of the weights, ``before``: passes of a finished training that this one goes on from.
    """
    for name in ("state_dict", "current_model_state") if averages else ("state_dict",):
        stored = checkpoint.get(name)
        if not isinstance(stored, dict) or stored.keys() != state.keys():
            raise _refusal(path, f"its {name} has other names than the network")
        for key, like in state.items():
            # The steps of channels with fewer edges end with edges that are infinite.
            fits = _fits(stored[key], like, infinite=key.endswith("activation.edges"))
            if not fits or (key.endswith("running_var") and bool((stored[key] < 0).any())):
                raise _refusal(path, f"its {key} is not finite, or of another shape or type than the network's")
    rows = checkpoint["history"]
    columns = [rows.get(name) for name in history]
    if rows.keys() != history.keys() or any(
        type(column) is not list
        or len(column) != before + checkpoint["epoch"]
        or any(type(v) is not float for v in column)
        for column in columns
    ):
        raise _refusal(path, "its history is none of this training")
    sums, shares = checkpoint["sums"], checkpoint.get("shares", {})
    if sums.keys() != {"train", "val"} or not all(map(_are_sums, sums.values())) or not _are_shares(shares):
        raise _refusal(path, "its sums are none of this training")
    threads, step = checkpoint["threads"], checkpoint["global_step"]
    if threads not in THREADS or step < 1:
        raise _refusal(path, f"it was written after {step} steps with {threads} threads")


def _are_sums(values: object) -> bool:
    """Whether these can be a pass's loss, correct answers and images so far."""
    if not _fits(values, torch.zeros(3)):
        return False
    loss, correct, images = values.tolist()  # type: ignore[attr-defined]
    return loss >= 0 and 0 <= correct <= images <= IMAGES.high


def _are_shares(values: object) -> bool:
    """Whether these can be the sums of each of several processes; one process alone has none."""
    if values == {}:
        return True
    return (
        isinstance(values, dict)
        and values.keys() == {"train", "val"}
        and all(type(each) is Tensor and (each.layout, each.ndim) == (torch.strided, 2) for each in values.values())
        and len(values["train"]) == len(values["val"]) <= PROCESSES.high * NODES.high
        and all(_are_sums(row) for each in values.values() for row in each)
    )


def _fits(value: object, like: Tensor, infinite: bool = False) -> bool:
    return (
        type(value) is Tensor
        and (value.layout, value.dtype, value.shape) == (torch.strided, like.dtype, like.shape)
        and not bool((value.isnan() if infinite else ~value.isfinite()).any())
    )


def _refusal(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged, or no checkpoint of this version of hybrid.train: {reason}")


def _payload(path: Path) -> io.BytesIO:
    """What follows the first line of the file, which it must match."""
    if not path.is_file():
        raise _refusal(path, "it is no file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _refusal(path, str(error.strerror)) from error
    header, _, payload = content.partition(b"\n")
    digest = hashlib.sha256(payload).hexdigest()
    if header != f"{SCHEMA} {digest} {len(payload)}".encode():
        raise _refusal(path, "it does not match its digest, or has none")
    return io.BytesIO(payload)


def _whole(path: Path) -> bool:
    try:
        _payload(path)
    except UserError:
        return False
    return True
