"""Products with matrices and with Sigma; on a CPU by the faster of torch's two libraries.

``torch.mm`` calls MKL, which gives processors of other makers its AVX2 kernels. oneDNN, which torch
carries too, uses AVX-512 on all of them: twice the rate on an AMD EPYC (190 to 210 instead of 90 to
97 Gflop/s a core). What calls it is the operator that ``torch.compile`` emits for linear layers.
Both compute in float32, as torch.backends.mkldnn.matmul.fp32_precision says.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectral_kernels.runtime.torch_internals import has_onednn_product, onednn_product

# torch.backends carries no annotations.
_BACKENDS: Any = torch.backends

# Multiplications below which the call takes longer than it saves: 12 microseconds, MKL's 2.
LEAST = 2**20


def mm(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a b for (..., p, q) and (..., q, r), with a gradient where gradients are recorded.

    With ``bias``, (r,), a b + bias of two matrices.

    oneDNN copies an ``a`` that is not contiguous, and takes any strides of ``b``.
    """
    if uses_onednn(a, b):
        return onednn_product(a, b, bias)
    return a @ b if bias is None else torch.addmm(bias, a, b)


def times_sigma(A: Tensor, Sigma: Tensor, *, transposed: bool = False) -> Tensor:
    """Return A Sigma, or A Sigma^T, for a dense Sigma (..., k, k) or a diagonal (..., k)."""
    if Sigma.dim() < A.dim():
        return A * Sigma.unsqueeze(-2)
    return mm(A, Sigma.mT if transposed else Sigma)


def sigma_times(Sigma: Tensor, A: Tensor, *, transposed: bool = False) -> Tensor:
    """Return Sigma A, or Sigma^T A."""
    if Sigma.dim() < A.dim():
        return Sigma.unsqueeze(-1) * A
    return mm(Sigma.mT if transposed else Sigma, A)


def uses_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether ``mm`` of these calls oneDNN; its operator has no gradient to be recorded."""
    if torch.is_grad_enabled() or a.dim() != 2 or a.dtype != torch.float32:
        return False
    if a.shape[0] * a.shape[1] * b.shape[1] < LEAST or a.device.type != "cpu":
        return False
    return onednn_is_faster() and bool(_BACKENDS.mkldnn.enabled)


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this processor has AVX-512 and MKL would not use it, and torch has both."""
    return (
        _BACKENDS.mkl.is_available()
        and _BACKENDS.mkldnn.is_available()
        and has_onednn_product()
        and _BACKENDS.cpu.get_cpu_capability() == "AVX512"
        and _maker() not in ("", "GenuineIntel")
    )


def _maker() -> str:
    """Return the name of the processor's maker ("AuthenticAMD"), "" where Linux does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("vendor_id")), "")
