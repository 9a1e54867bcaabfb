"""Values whose sums are exact: no order of addition rounds, so engines, devices and batches agree to the last bit."""

import torch
from torch import Tensor


def exact_grid(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """The finest power of two on whose multiples sums of up to ``largest`` (a number) are exact in ``dtype``."""
    digits = {torch.float32: 24, torch.float64: 53}[dtype]
    # The exponent as it is stored: a logarithm of a power of two is rounded on some devices.
    mantissa, exponent = torch.frexp(largest.double().clamp(min=1e-30))
    return torch.exp2((exponent - (mantissa == 0.5).int() - digits).double()).to(dtype)


def round_for_exact_sums(values: Tensor, largest: Tensor) -> Tensor:
    """``values`` rounded to the finest power-of-two grid on which sums of up to ``largest`` (a number) are exact."""
    grid = exact_grid(largest, values.dtype)
    return torch.round(values / grid) * grid
