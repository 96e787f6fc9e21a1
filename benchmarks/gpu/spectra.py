"""Singular values and decompositions of batches: ours, torch's drivers, the Gram matrix, CuPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import spectral_kernels as sk
from benchmarks.comparison import Comparison, Contender
from benchmarks.gpu.case import OURS, Case, Target, at_most, times_faster
from benchmarks.gpu.floors import Work
from benchmarks.test_svdvals import gram_values

# Batch, m, n.
VALUES = [(4096, 16, 16), (4096, 32, 32), (1000, 64, 64), (256, 128, 128), (64, 200, 200),
          (64, 512, 128), (16, 768, 768), (4, 3072, 768), (2, 2048, 2048)]  # fmt: skip
VECTORS = [(4096, 32, 32), (1000, 64, 64), (256, 128, 128), (64, 512, 128), (4, 768, 768)]
TINY = [(3, 8, 8), (2, 40, 24)]

_LIMIT_EPS = 8.0
_RESIDUAL = 1e-5
GRAM = "float64 Gram + torch.linalg.eigvalsh"
# A loop of gesvd over a thousand matrices takes minutes and says nothing new.
_MOST_FOR_LOOPS = 64


def cases(device: str, *, tiny: bool) -> Iterator[Case]:
    """Return all cases of this file."""
    for shape in TINY if tiny else VALUES:
        yield _values(shape, device)
    for shape in TINY if tiny else VECTORS:
        yield _vectors(shape, device)


def _values(shape: tuple[int, int, int], device: str) -> Case:
    A = _random(shape, device)
    batch, m, n = shape
    r = min(m, n)
    truth = torch.linalg.svdvals(A.double().cpu())
    eps = torch.finfo(A.dtype).eps

    def error(values: Any) -> float:
        found = torch.as_tensor(values, dtype=torch.float64).cpu()
        return float(((found - truth).abs().amax(-1) / (eps * truth[..., 0])).max())

    contenders = [
        Contender(OURS, lambda: sk.svdvals(A), error, limit=_LIMIT_EPS),
        Contender("torch.linalg.svdvals", lambda: torch.linalg.svdvals(A), error),
        Contender(GRAM, lambda: gram_values(A), error),
        *_drivers(A, batch, error, values=True),
        _cupy(A, error, values=True),
    ]
    # Bidiagonalisation of r x r after a reduction of the longer side.
    flops = batch * (2.0 * max(m, n) * r * r * (m != n) + 8.0 / 3.0 * r**3)
    work = Work(4.0 * batch * (m * n + r), flops)
    name = f"{batch} x {m} x {n}"
    comparison = Comparison("svdvals", name, tuple(contenders), "eps σ₁")
    return Case(comparison, work, _targets(shape))


def _targets(shape: tuple[int, int, int]) -> tuple[Target, ...]:
    if shape == (1000, 64, 64):
        return (
            at_most("1000 x 64² values in 0.5 ms", 0.5),
            times_faster("1000 x 64² values at least 10 times XsyevBatched", GRAM, 10.0),
        )
    if shape == (256, 128, 128):
        return (times_faster("256 x 128² values at least 10 times XsyevBatched", GRAM, 10.0),)
    return ()


def _vectors(shape: tuple[int, int, int], device: str) -> Case:
    A = _random(shape, device)
    batch, m, n = shape
    r = min(m, n)
    wide = A.double()
    size = torch.linalg.matrix_norm(wide, 2)

    def error(usv: Any) -> float:
        U, S, Vh = (torch.as_tensor(x, device=device).double() for x in usv)
        off = torch.linalg.matrix_norm((U * S.unsqueeze(-2)) @ Vh - wide) / size
        unit = torch.eye(r, device=device, dtype=torch.float64)
        skew = torch.linalg.matrix_norm(U.mT @ U - unit) / r**0.5
        return float(torch.maximum(off, skew).max())

    contenders = [
        Contender(OURS, lambda: sk.svd(A), error, limit=_RESIDUAL),
        Contender("torch.linalg.svd", lambda: torch.linalg.svd(A, full_matrices=False), error),
        *_drivers(A, batch, error, values=False),
        _cupy(A, error, values=False),
    ]
    # One-sided Jacobi needs some six sweeps; the floor counts one bidiagonalisation and its
    # two back-transformations, which every method needs.
    flops = batch * (4.0 * max(m, n) * r * r + 8.0 * r**3)
    work = Work(4.0 * batch * (2 * m * n + r * r + r), flops)
    name = f"{batch} x {m} x {n}"
    return Case(Comparison("svd", name, tuple(contenders), "residual / σ₁"), work)


def _drivers(
    A: Tensor, batch: int, error: Callable[[Any], float], *, values: bool
) -> list[Contender]:
    """torch's cuSOLVER drivers by name; its own choice is the contender without one."""
    if A.device.type != "cuda":
        return []
    found = []
    for driver in ("gesvd", "gesvdj", "gesvda"):
        if driver == "gesvd" and batch > _MOST_FOR_LOOPS:
            continue

        def run(driver: str = driver) -> Any:
            if values:
                return torch.linalg.svdvals(A, driver=driver)
            return torch.linalg.svd(A, full_matrices=False, driver=driver)

        found.append(Contender(f"torch, {driver}", run, error))
    return found


def _cupy(A: Tensor, error: Callable[[Any], float], *, values: bool) -> Contender:
    def run() -> Any:
        import cupy

        array = cupy.from_dlpack(A)
        if values:
            return torch.from_dlpack(cupy.linalg.svd(array, compute_uv=False))
        parts = cupy.linalg.svd(array, full_matrices=False)
        return tuple(torch.from_dlpack(x) for x in parts)

    return Contender("cupy.linalg.svd", run, error, needs="cupy")


def _random(shape: tuple[int, int, int], device: str) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
