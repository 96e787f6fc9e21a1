"""Cores of finite factors whose product is beyond the range of its type.

Each factor is divided by a power of two, and the core is that of what is left: values of the whole
are its values times that power, and infinite where they are too large; ranks and vectors are its
own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.entry.core.op import Core, core_dtype
from spectral_kernels.entry.results import Decomposed
from spectral_kernels.runtime import numerics

# What two halves of a power of two can be in float64.
_EXPONENTS = 2040


def scaled_down(x: Decomposed, core: Core) -> tuple[Decomposed, Tensor] | None:
    """Return factors over powers of two and the exponents (...) of their product, 0 for others.

    None where the core overflowed for no matrix of finite factors, and on a GPU, where the answer
    would have to be waited for. Differentiable.
    """
    if core.error.device.type != "cpu":
        return None
    lost = core.error.isnan()
    if not bool(lost.any()):
        return None
    lost = lost & torch.stack([part.isfinite().all(-1).all(-1) for part in x]).all(dim=0)
    if not bool(lost.any()):
        return None
    parts, total = [], torch.zeros_like(lost, dtype=torch.int32)
    for part in x:
        wide = part.to(core_dtype(x))
        largest = torch.linalg.vector_norm(wide.detach(), float("inf"), dim=(-2, -1))
        exponent = torch.where(lost, torch.frexp(largest).exponent, 0)
        parts.append(numerics.scale(wide, -exponent[..., None, None]))
        total = total + exponent
    return Decomposed(*parts), total.clamp(-_EXPONENTS, _EXPONENTS)


def scaled_up(values: Tensor, exponent: Tensor) -> Tensor:
    """Return (..., r) or (...) times 2**exponent (...), infinite where that is beyond its type."""
    each = exponent.unsqueeze(-1) if values.dim() > exponent.dim() else exponent
    wide = numerics.scale(values.double(), each)
    return wide.to(values.dtype)
