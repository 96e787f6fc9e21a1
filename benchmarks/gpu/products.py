"""Alignment diagonals of all pairs, and x (U Sigma Vh)^T with its gradients."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import spectral_kernels as sk
from benchmarks.comparison import Comparison, Contender
from benchmarks.gpu.case import OURS, Case, Target, at_most, times_faster
from benchmarks.gpu.floors import Work
from spectral_kernels.alignment.prepared import PreparedDiagonals

# Rows, side, rank: squares from a decomposed attention projection up to a large one.
GRID = list(itertools.product((512, 8192), (1024, 4096), (16, 64, 256)))
# Of float32 sums over thousands of rows.
_LIMIT = 1e-5
PEER = "torch's products, through autograd"


def cases(device: str, *, tiny: bool) -> Iterator[Case]:
    """Return all cases of this file."""
    yield _alignments(*((3, 24, 5) if tiny else (50, 768, 100)), device)
    dtypes = [torch.float32] if tiny else [torch.bfloat16, torch.float32]
    for dtype in dtypes:
        for p, n, k in [(48, 32, 16)] if tiny else GRID:
            for backward in (False, True):
                yield _usv(p, n, k, dtype, device, backward=backward)


def _alignments(count: int, m: int, k: int, device: str) -> Case:
    bases = [torch.linalg.qr(torch.randn(m, m, device=device)).Q for _ in range(count + 1)]
    # Left vectors lie by columns, as every solver here returns them.
    pairs = [(a.mT.contiguous().mT, b.mT.contiguous()) for a, b in itertools.pairwise(bases)]
    truth = torch.cat([(a.mT.double() @ b.mT.double()).diagonal()[:k].abs() for a, b in pairs])
    prepared = PreparedDiagonals(pairs, k)

    def error(found: Any) -> float:
        joined = torch.cat(list(found)) if isinstance(found, list) else found
        return float((joined.double() - truth).abs().max())

    left, right = torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])
    contenders = (
        Contender(OURS, prepared.run, error, limit=1e-6),
        Contender(
            "ours, a list",
            lambda: sk.alignment_diagonal([a for a, _ in pairs], [b for _, b in pairs], k),
            error,
        ),
        Contender(
            "torch.einsum of stacked vectors",
            lambda: torch.einsum("bmk,bkm->bk", left[..., :k], right[:, :k]).abs().flatten(),
            error,
        ),
        Contender(
            "product and diagonal, a loop",
            lambda: [(a[:, :k].mT @ b[:k].mT).diagonal().abs() for a, b in pairs],
            error,
        ),
    )
    work = Work(4.0 * count * (2 * m * k + k), 2.0 * count * m * k)
    targets = (
        (at_most("alignments of 50 pairs x 100 vectors in 20 µs", 0.02),) if count == 50 else ()
    )
    comparison = Comparison("alignment", f"{count} pairs, {m} x {k}", contenders, "absolute")
    return Case(comparison, work, targets)


def _usv(p: int, n: int, k: int, dtype: torch.dtype, device: str, *, backward: bool) -> Case:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float) -> Tensor:
        x = (scale * torch.randn(shape, generator=generator)).to(device, dtype)
        return x.requires_grad_(backward)

    x = normal(p, n, scale=1.0)
    U, Vh = normal(n, k, scale=k**-0.5), normal(k, n, scale=n**-0.5)
    Sigma = normal(k, k, scale=k**-0.5)
    g = torch.randn((p, n), generator=generator).to(device, dtype)
    leaves = (x, U, Sigma, Vh)
    wide = [t.detach().double().requires_grad_(backward) for t in leaves]

    def gradients(y: Tensor, of: Any, grad: Tensor) -> Any:
        return torch.autograd.grad(y, of, grad) if backward else (y,)

    truth = gradients(_products(*wide), wide, g.double())

    def error(found: Any) -> float:
        return max(
            float((a.double() - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True)
        )

    contenders = (
        Contender(
            OURS,
            lambda: gradients(sk.usv_matmul(x, U, Sigma, Vh), leaves, g),
            error,
            limit=max(8.0 * torch.finfo(dtype).eps, _LIMIT),
        ),
        Contender(PEER, lambda: gradients(_products(x, U, Sigma, Vh), leaves, g), error),
    )
    size = x.element_size()
    passes = 3 if backward else 1
    # x and g once in, dx out; the factors and their gradients.
    moved = size * (p * n * (3 if backward else 2) + passes * (2 * n * k + k * k))
    flops = passes * 2.0 * p * (2 * n * k + k * k)
    rate = "bf16" if dtype == torch.bfloat16 else "fp32"
    what = "forward and backward" if backward else "forward"
    name = f"{p} x {n}, rank {k}, {str(dtype).removeprefix('torch.')}"
    told = f"usv_matmul {what} never slower than torch's products: {name}"
    targets: list[Target] = [times_faster(told, PEER, 1.0)]
    if backward and dtype == torch.bfloat16 and (p, n, k) == (8192, 4096, 64):
        targets.append(
            times_faster(
                "usv_matmul backward at least 1.2 times: 8192 rows, 4096², rank 64", PEER, 1.2
            )
        )
    comparison = Comparison(f"usv_matmul, {what}", name, contenders, "relative")
    return Case(comparison, Work(float(moved), flops, rate), tuple(targets))


def _products(x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor) -> Tensor:
    """x Vh^T (U Sigma)^T: two large products, and one small enough not to count."""
    return (x @ Vh.mT) @ (U @ Sigma).mT
