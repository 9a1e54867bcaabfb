"""State dicts in files that ``torch.save`` wrote. Nothing in such a file runs."""

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snn.runtime.errors import UserError, check

NESTED = "state_dict"
"""Name under which a checkpoint of training holds the weights."""
PARALLEL = "module."
"""Start of all names of a network that several GPUs shared."""


def read_state(path: Path, expected: str = "") -> tuple[dict[str, Any], bytes]:
    """A state dict by name, on the CPU, of a checkpoint its "state_dict"; and the bytes of the file.

    ``expected`` says what else the file may be. Raises :class:`UserError` for a missing or damaged file, or one without
    tensors.
    """
    check(path.is_file(), f"`weights` {path}: there is no such file; give a state dict{expected}")
    what = f"expected a state dict, as torch.save(network.state_dict(), FILE) writes it{expected}"
    content = path.read_bytes()
    try:
        file = io.BytesIO(content)
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
            # PyTorch never compresses: nothing can grow as it is read.
            check(unpacked <= len(content), "its parts are packed")
        file.seek(0)
        # PyTorch warns of oddities before it refuses a file.
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # What is no such file fails anywhere in PyTorch's reader.
        raise UserError(f"`weights` {path}: PyTorch does not read it as tensors alone; {what}") from error
    if isinstance(state, dict) and isinstance(state.get(NESTED), dict):
        state = state[NESTED]
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    check(
        named and any(isinstance(value, Tensor) for value in state.values()),
        f"`weights` {path}: it holds no tensors by name; {what}",
    )
    return state, content


def shape_text(value: object) -> str:
    """Shape of a tensor for messages, such as 64x3x3x3; of anything else its type."""
    return "x".join(map(str, value.shape)) or "a number" if isinstance(value, Tensor) else type(value).__name__
