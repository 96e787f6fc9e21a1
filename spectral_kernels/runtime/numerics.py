"""Accumulation types, scaling by powers of two, and the treatment of NaN and signs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from spectral_kernels.runtime.limits import VALUE_ROUNDING

# The codes of the compiled kernels; anything else is refused before it gets there.
DTYPE_CODES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}

# Bits of mantissa and exponent bias of the two formats that results have.
_FORMATS = {torch.float32: (torch.int32, 23, 127), torch.float64: (torch.int64, 52, 1023)}


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of computation and results: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocasting(device: str) -> bool:
    """Return whether ``torch.autocast`` is on for a type of device ("cpu", "cuda")."""
    available: bool = torch.amp.is_autocast_available(device)
    return available and torch.is_autocast_enabled(device)


def autocast_dtype(A: Tensor) -> torch.dtype:
    """Return the dtype that ``torch.autocast``, as it is now, gives an operand of a product.

    That of ``A`` where autocast is off, and for float64 and what is not floating, which torch
    leaves alone.
    """
    device = A.device.type
    cast = A.is_floating_point() and A.dtype != torch.float64
    if not cast or not autocasting(device):
        return A.dtype
    return torch.get_autocast_dtype(device)


def autocast_off(device: str) -> AbstractContextManager[Any]:
    """Return a context in which products are computed in the dtypes of their operands."""
    return torch.autocast(device, enabled=False) if autocasting(device) else nullcontext()


def default_rtol(m: int, n: int, dtype: torch.dtype) -> float:
    """Return max(m, n) * eps of ``dtype``, the usual threshold of a numerical rank."""
    return max(m, n) * torch.finfo(dtype).eps


def value_rounding(m: int, n: int, dtype: torch.dtype) -> float:
    """Return how far singular values computed from scratch may be off, relative to sigma_1.

    8 eps where results are float32, since the arithmetic is float64. In float64 itself
    (8 + max(m, n)) eps, about the tolerance at which a numerical rank takes a value for rounding.
    Householder's reduction sums max(m, n) products in each entry, whose roundings may all have one
    sign: what is proved of it, a small constant times m n eps ||A||_F (Higham, Accuracy and
    Stability of Numerical Algorithms, 2002, Theorem 19.4), is far beyond what it does. The worst
    known are constant matrices, with up to 0.3 max(m, n) eps (886 eps for 400 x 3000 ones, by
    LAPACK); random, graded and clustered ones have 0.02 max(m, n) eps and less.
    """
    result = result_dtype(dtype)
    terms = VALUE_ROUNDING + (max(m, n) if result == torch.float64 else 0)
    return terms * torch.finfo(result).eps


def power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 2**exponent exactly, from its bits: ``exp2`` need not be exact.

    ``exponent`` must lie in the normal range of ``dtype`` (float32 or float64).
    """
    integer, mantissa_bits, bias = _FORMATS[dtype]
    bits = (exponent.to(integer) + bias) << mantissa_bits
    return bits.view(dtype)


def scale(A: Tensor, exponent: Tensor) -> Tensor:
    """Return A * 2**exponent, ``exponent`` broadcast over A, in two exact halves.

    Two halves, because 2**-e overflows where 2**e is denormal.
    """
    half = exponent // 2
    return A * power_of_two(half, A.dtype) * power_of_two(exponent - half, A.dtype)


def finite_matrices(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``A`` (..., m, n) with bad matrices zeroed, the mask of bad ones, and max|a|.

    LAPACK raises or never ends on NaN, so a matrix with NaN or Inf is replaced by zeros before
    and by NaN after (``poison``). Both other results have shape (...).
    """
    largest = torch.linalg.vector_norm(A, float("inf"), dim=(-2, -1))
    bad = ~torch.isfinite(largest)
    if bool(bad.any()):
        A = torch.where(bad[..., None, None], torch.zeros((), dtype=A.dtype, device=A.device), A)
        largest = torch.where(bad, torch.zeros_like(largest), largest)
    return A, bad, largest


def normalize(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale every matrix of ``A`` (float32 or float64) to max|a| in [0.5, 1).

    Returns the scaled matrices, the exponents (...) with A = scaled * 2**exponent, and the mask
    of matrices with NaN or Inf, which are zeros here.
    """
    A, bad, largest = finite_matrices(A)
    exponent = torch.frexp(largest).exponent
    return scale(A, -exponent[..., None, None]), exponent, bad


def poison(x: Tensor, bad: Tensor) -> Tensor:
    """Return ``x`` with NaN wherever ``bad``, broadcast over the trailing dimensions."""
    if not bool(bad.any()):
        return x
    mask = bad.reshape(bad.shape + (1,) * (x.dim() - bad.dim()))
    return torch.where(mask, torch.full((), float("nan"), dtype=x.dtype, device=x.device), x)


def fix_signs(U: Tensor, Vh: Tensor) -> tuple[Tensor, Tensor]:
    """Make the entry of largest magnitude of every column of ``U`` positive."""
    if U.numel() == 0:
        return U, Vh
    pivot = torch.gather(U, -2, U.abs().argmax(dim=-2, keepdim=True))
    sign = torch.where(pivot < 0, -1.0, 1.0).to(U.dtype)
    return U * sign, Vh * sign.mT


def by_columns(U: Tensor) -> Tensor:
    """Return ``U`` with its columns contiguous, the layout of left vectors in every result."""
    return U.mT.contiguous().mT
