"""Leading triplets and tracked spectra."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

import spectral_kernels as sk
from benchmarks.comparison import Comparison, Contender
from benchmarks.gpu.case import OURS, Case, Target, at_most, times_faster, times_floor
from benchmarks.gpu.floors import Work

_OVERSAMPLE = 8
_TOLERANCE = 1e-3
# Relative to the norm of the matrix: a step of AdamW at 3e-4 moves weights by 0.2 %.
_SPEED = 2e-3


def cases(device: str, *, tiny: bool) -> Iterator[Case]:
    """Return all cases of this file."""
    sides = [(96, 64, 4)] if tiny else [(1024, 1024, 32), (4096, 4096, 32), (4096, 1024, 100)]
    for m, n, k in sides:
        yield _randomized(m, n, k, device)
    yield _tracked(
        [(24, 16), (16, 24)] if tiny else 12 * [(768, 768), (2304, 768), (3072, 768), (768, 3072)],
        device,
    )


def _randomized(m: int, n: int, k: int, device: str) -> Case:
    A = falling(m, n, device)
    truth = torch.linalg.svdvals(A.double())[:k].cpu()
    warm = sk.rsvd(A, k)

    def error(usv: Any) -> float:
        found = usv[1][..., :k].double().cpu()
        return float((found - truth).abs().max() / truth[0])

    contenders = (
        Contender(OURS, lambda: sk.rsvd(A, k, start=warm, power_iters=0), error, limit=_TOLERANCE),
        Contender("ours, cold, 2 power iterations", lambda: sk.rsvd(A, k), error),
        Contender(
            "torch.svd_lowrank, niter=2",
            lambda: torch.svd_lowrank(A, q=k + _OVERSAMPLE, niter=2),
            error,
        ),
        Contender(
            "torch.svd_lowrank, niter=0",
            lambda: torch.svd_lowrank(A, q=k + _OVERSAMPLE, niter=0),
            error,
        ),
    )
    width = k + _OVERSAMPLE
    work = Work(2.0 * A.nbytes + 4.0 * k * (m + n), 4.0 * m * n * width)
    targets: tuple[Target, ...] = ()
    if (m, n, k) == (4096, 4096, 32):
        targets = (times_floor("warm rsvd k = 32 of 4096² within 2.5 times its floor", 2.5),)
    comparison = Comparison("rsvd, warm", f"{m} x {n}, k = {k}", contenders, "σ₁")
    return Case(comparison, work, targets)


class _Walk:
    """Matrices that move a step further each time, in the same memory."""

    def __init__(self, shapes: list[tuple[int, int]], device: str) -> None:
        self.now = [falling(m, n, device) for m, n in shapes]
        steps = [
            _SPEED * float(A.norm()) / A.numel() ** 0.5 * torch.randn_like(A) for A in self.now
        ]
        self._steps = cycle([steps, [-x for x in steps]])

    def step(self) -> None:
        """Take the next step."""
        torch._foreach_add_(self.now, next(self._steps))


def _tracked(shapes: list[tuple[int, int]], device: str) -> Case:
    walk = _Walk(shapes, device)
    tracker = sk.SpectrumTracker(tolerance=_TOLERANCE, reuse_buffers=True)
    for _ in range(3):
        tracker.update(walk.now)
        walk.step()
    looked_at = list({shape: i for i, shape in enumerate(shapes)}.values())

    def error(values: Any) -> float:
        worst = 0.0
        for i in looked_at:
            truth = torch.linalg.svdvals(walk.now[i].double())
            worst = max(worst, float((values[i].double() - truth).abs().max() / truth[0]))
        return worst

    contenders = (
        Contender(
            OURS, lambda: [x.S for x in tracker.update(walk.now)], error, _TOLERANCE, walk.step
        ),
        Contender(
            "torch.linalg.svdvals, a loop",
            lambda: [torch.linalg.svdvals(A) for A in walk.now],
            error,
            prepare=walk.step,
        ),
    )
    # W = A V, W^T W by half, the rotation's two products, V R, W R and its W^T W, in float64.
    flops = sum(2.0 * max(s) * min(s) ** 2 * 3 + 6.0 * min(s) ** 3 for s in shapes)
    moved = sum(A.nbytes + 8.0 * min(A.shape) * sum(A.shape) for A in walk.now)
    smallest, largest = (f"{m} x {n}" for m, n in (min(shapes), max(shapes)))
    name = f"{len(shapes)} matrices, {smallest} to {largest}"
    targets = ()
    if len(shapes) == 48:
        targets = (
            at_most("tracked full spectrum of 48 matrices in 10 ms", 10.0),
            times_faster(
                "tracked full spectrum of 48 matrices at least 100 times torch.linalg.svdvals",
                "torch.linalg.svdvals, a loop",
                100.0,
            ),
        )
    comparison = Comparison("tracked, all values and vectors", name, contenders, "σ₁")
    return Case(comparison, Work(moved, flops, "fp64"), targets)


def falling(m: int, n: int, device: str) -> Tensor:
    """Return a matrix whose values fall like those of trained layers: 1 / i^0.7."""
    generator = torch.Generator().manual_seed(m * 65_537 + n)
    r = min(m, n)
    left = torch.linalg.qr(torch.randn(m, r, generator=generator).to(device)).Q
    right = torch.linalg.qr(torch.randn(n, r, generator=generator).to(device)).Q
    return (left * torch.arange(1, r + 1, device=device) ** -0.7) @ right.mT
