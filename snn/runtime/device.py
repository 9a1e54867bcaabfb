"""Where to compute."""

from typing import TYPE_CHECKING, Literal

from snn.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

DeviceName = Literal["auto", "cpu", "cuda"]


def as_device(device: "torch.device | str") -> "torch.device":
    """PyTorch's device of that name; :class:`UserError` if there is none."""
    import torch

    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"`device` {device!r}: unknown; give cpu or cuda") from error
    if found.type == "cuda":
        choose_device("cuda")
    return found


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16, as far as PyTorch knows."""
    import torch

    # Older versions of PyTorch cannot be asked.
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return not known or any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def choose_device(name: DeviceName) -> "torch.device":
    """``auto`` is CUDA where there is one, else the CPU; ``cuda`` without one is a :class:`UserError`."""
    # Imported here: a command's --help must not wait for it.
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("`device` cuda: PyTorch finds no CUDA device here; use cpu or auto, or install a CUDA driver")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        # TF32 keeps 10 bits of a weight: drives near an edge of a step function would land beyond it.
        torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)
