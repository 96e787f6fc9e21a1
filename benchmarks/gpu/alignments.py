"""Alignment diagonals of all pairs of layers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

import spectral_kernels as sk
from benchmarks.comparison import Comparison, Contender
from benchmarks.gpu.case import OURS, Case, at_most
from benchmarks.gpu.floors import Work
from spectral_kernels.alignment.prepared import PreparedDiagonals


def cases(device: str, *, tiny: bool) -> Iterator[Case]:
    """Return the one case of this file."""
    yield _alignments(*((3, 24, 5) if tiny else (50, 768, 100)), device)


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
