"""Vectors of a tracker whose matrices lose rank: orthonormal at every update, on both sides."""

from __future__ import annotations

import pytest
import torch

import spectral_kernels as sk
from tests.support.collapses import PATTERNS, Collapse, departure

# What `SpectrumTracker.update` states of its vectors.
DEPARTURE = 0.03

SHAPES = [(128, 96), (96, 128), (200, 200)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_vectors_stay_orthonormal(
    pattern: str, shape: tuple[int, int], dtype: torch.dtype, backend: str
) -> None:
    tracker = sk.SpectrumTracker()
    for matrix in Collapse(*shape)(pattern):
        A = torch.from_numpy(matrix).to(dtype)
        found = tracker.update(A)
        assert departure(found.U) < DEPARTURE
        assert departure(found.Vh.mT) < DEPARTURE
        assert tracker.bounds is not None
        # What a vector of a tiny value becomes costs no more than the values' own errors.
        rest = torch.linalg.matrix_norm((found.U.double() * found.S) @ found.Vh.double() - A, 2)
        assert rest <= 4.0 * tracker.bounds.max() + 1e-6 * found.S[0]


def test_float32_columns_of_rounding(backend: str) -> None:
    # At a side of 300 the columns of zero values are rounding above what counts as noise.
    tracker = sk.SpectrumTracker()
    for matrix in Collapse(300, 300)("within"):
        assert departure(tracker.update(torch.from_numpy(matrix).float()).U) < DEPARTURE


def test_every_instruction_set(every_isa: str) -> None:
    tracker = sk.SpectrumTracker()
    for matrix in Collapse(128, 96)("within"):
        found = tracker.update(torch.from_numpy(matrix))
        assert departure(found.U) < DEPARTURE


@pytest.mark.parametrize("pattern", PATTERNS)
def test_leading_vectors_stay_orthonormal(pattern: str, backend: str) -> None:
    tracker = sk.SpectrumTracker(12)
    for matrix in Collapse(128, 96)(pattern):
        found = tracker.update(torch.from_numpy(matrix).float())
        assert departure(found.U) < 1e-5
        assert departure(found.Vh.mT) < 1e-5


def test_vectors_of_decomposed_matrices_stay_orthonormal(backend: str) -> None:
    tracker = sk.SpectrumTracker()
    U, V = torch.randn(100, 40), torch.randn(40, 90)
    sigma = torch.diag(torch.linspace(1.0, 0.5, 40))
    for rest in (1.0, 1.0, 0.0, 0.0, 1e-8, 1e-5, 0.0):
        core = torch.where(torch.arange(40) < 4, sigma, rest * sigma)
        found = tracker.update(sk.Decomposed(U, core, V))
        assert departure(found.U) < DEPARTURE
        assert departure(found.Vh.mT) < DEPARTURE
