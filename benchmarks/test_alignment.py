"""The alignment diagonal of 100 vectors: pairs of consecutive layers in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import spectral_kernels as sk
from benchmarks.comparison import Comparison, Contender, parametrize, run_named

K = 100
CASES = [(8, 128), (12, 768), (1, 2048)]
NAMES = ["ours", "dense product, then its diagonal", "torch.einsum of the diagonal"]


def orthonormal(batch: int, n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(batch, n, n, generator=generator))[0]


def compare_alignment(batch: int, n: int) -> Comparison:
    # By columns, as LAPACK and sk.svd leave U.
    U = orthonormal(batch, n, 0).mT.contiguous().mT
    Vh = orthonormal(batch, n, 1)
    truth = (U.double()[..., :K] * Vh.double()[:, :K].mT).sum(-2).abs()

    def error(diagonal: Any) -> float:
        return float((diagonal.double() - truth).abs().max())

    contenders = (
        Contender(NAMES[0], lambda: sk.alignment_diagonal(U, Vh, k=K), error, limit=1e-6),
        Contender(NAMES[1], lambda: (Vh @ U).diagonal(dim1=-2, dim2=-1)[..., :K].abs(), error),
        Contender(
            NAMES[2], lambda: torch.einsum("bai,bia->bi", U[..., :K], Vh[:, :K]).abs(), error
        ),
    )
    return Comparison(
        f"alignment_diagonal, k = {K}", f"{batch} x {n} x {n}", contenders, "absolute"
    )


@parametrize(compare_alignment, CASES, NAMES)
def test_alignment(benchmark: Any, make: Any, arguments: Any, name: str) -> None:
    run_named(benchmark, make, arguments, name)
