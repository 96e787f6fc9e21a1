"""Singular values of the decomposed layers of a Transformer, float32, all layers in one call.

Factors as training leaves them: U and Vh not far from orthonormal, Sigma dense.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import spectral_kernels as sk
from benchmarks.comparison import Comparison, Contender, run

# Layers (m, n): a one-layer Transformer of width 128 with an embedding and a head for 99 tokens,
# and one of 12 layers and width 768 with fused projections.
SMALL = [(128, 128)] * 6 + [(512, 128), (128, 512), (99, 128), (99, 128)]
LARGE = [(2304, 768), (768, 768), (3072, 768), (768, 3072)] * 12
CASES = [("10 layers of width 128, full rank", SMALL, 128), ("the same, rank 64", SMALL, 64),
         ("48 layers of width 768, rank 192", LARGE, 192)]  # fmt: skip
NAMES = ["ours", "recompose + sk.svdvals", "recompose + torch.linalg.svdvals",
         "torch.linalg.qr twice + svdvals"]  # fmt: skip
EPS = torch.finfo(torch.float32).eps


def trained(m: int, n: int, k: int, generator: torch.Generator) -> sk.Decomposed:
    k = min(m, n, k)
    U, Sigma, Vh = (torch.randn(*shape, generator=generator) for shape in ((m, k), (k, k), (k, n)))
    nearly = [torch.linalg.qr(x).Q + 0.05 * x / x.shape[0] ** 0.5 for x in (U, Vh.mT)]
    core = torch.diag(torch.linspace(2.0, 0.1, k)) + 0.05 * Sigma / k
    return sk.Decomposed(nearly[0], core, nearly[1].mT.contiguous())


def by_qr(factors: list[sk.Decomposed]) -> list[Tensor]:
    """Return singular values as everybody would write it down."""
    values = []
    for U, Sigma, Vh in factors:
        R_u, R_v = torch.linalg.qr(U, mode="r").R, torch.linalg.qr(Vh.mT, mode="r").R
        values.append(torch.linalg.svdvals(R_u @ Sigma @ R_v.mT))
    return values


def compare(case: str, layers: list[tuple[int, int]], k: int) -> Comparison:
    generator = torch.Generator().manual_seed(0)
    factors = [trained(m, n, k, generator) for m, n in layers]
    # One of each shape is checked: float64 values of 48 large products would take minutes.
    checked = {x.U.shape + x.Vh.shape: i for i, x in enumerate(factors)}.values()
    truth = {}
    for i in checked:
        U, Sigma, Vh = (part.double() for part in factors[i])
        truth[i] = torch.linalg.svdvals(U @ Sigma @ Vh)[: Sigma.shape[-1]]

    def error(values: list[Tensor]) -> float:
        return max(
            float((values[i][: len(want)] - want).abs().max() / (EPS * want[0]))
            for i, want in truth.items()
        )

    runs: list[Callable[[], Any]] = [
        lambda: sk.svdvals(factors),
        lambda: sk.svdvals([sk.recompose(*x) for x in factors]),
        lambda: [torch.linalg.svdvals(sk.recompose(*x)) for x in factors],
        lambda: by_qr(factors),
    ]
    contenders = tuple(
        Contender(name, work, error, limit=8.0 if name == "ours" else None)
        for name, work in zip(NAMES, runs, strict=True)
    )
    return Comparison("spectra of decomposed layers", case, contenders, "eps σ₁")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("case", "layers", "k"), CASES, ids=[case for case, _, _ in CASES])
def test_decomposed_spectra(
    benchmark: Any, case: str, layers: list[tuple[int, int]], k: int, name: str
) -> None:
    comparison = compare(case, layers, k)
    run(benchmark, comparison, next(c for c in comparison.contenders if c.name == name))
