"""The rank epilogue where its grid and its tiles end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.entry.results import METRICS
from spectral_kernels.rank import torch_backend, triton_backend, truth
from spectral_kernels.runtime import dispatch
from spectral_kernels.runtime.numerics import default_rtol


def test_the_kernels_run() -> None:
    assert dispatch.backend("rank", "cpu").__name__ == "spectral_kernels.rank.triton_backend"


@pytest.mark.parametrize("r", [1, 2, 127, 128, 129, 256, 257])
def test_lengths_around_the_tiles(r: int) -> None:
    S = torch.rand(3, r, dtype=torch.float64).sort(descending=True)[0]
    S[1] = 0
    summary = sk.summarize_singular_values(S, (r, r + 1))
    want = truth.summarize(S.numpy(), r, r + 1, (r + 1) * 2.0**-52)
    for metric in METRICS:
        np.testing.assert_allclose(
            getattr(summary, metric), getattr(want, metric), rtol=1e-14, atol=1e-14
        )


def test_strides_of_sides_of_length_one() -> None:
    S = torch.rand(1, 5).mT
    assert S.is_contiguous()
    assert S.stride(-1) == 5
    assert torch.equal(
        triton_backend.summary_tables([S], [(1, 1)], -1.0)[0][:, 4], S[:, 0].double()
    )


def test_ragged_dtypes_layouts_and_bad_spectra() -> None:
    """One launch over spectra that differ in length, type and layout, one of them with NaN."""
    wide = torch.rand(4, 6).sort(dim=0, descending=True)[0]
    bad = torch.rand(2, 3, 7)
    bad[1, 2, 3] = torch.nan
    spectra = [wide.mT, torch.rand(5).double(), bad, torch.empty(0, 3), torch.empty(2, 0)]
    found = sk.summarize_singular_values(spectra)
    assert [x.stable_rank.shape for x in found] == [(6,), (), (2, 3), (0,), (2,)]
    for S, summary in zip(spectra, found, strict=True):
        r = S.shape[-1]
        clean = torch.nan_to_num(S.double(), nan=1.0).numpy()
        want = truth.summarize(clean, r, r, r * torch.finfo(S.dtype).eps)
        rows = torch.isnan(S).any(dim=-1).numpy()
        for metric in METRICS:
            expected = np.where(rows, np.nan, getattr(want, metric))
            np.testing.assert_allclose(getattr(summary, metric), expected, rtol=3e-7, atol=1e-7)


def spectra() -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
    """Batches of odd sizes, extremes of scale, zeros, NaN, Inf, empty ones, strides."""
    made = {
        (37, 50): torch.rand(5, 37),
        (9, 9): torch.rand(3, 2, 9).double() * 1e-300,
        (4, 8): torch.zeros(2, 4),
        (1, 1): torch.tensor([[3.0]]),
        (0, 3): torch.empty(2, 0),
        (6, 70): torch.rand(0, 6),
        (33, 33): torch.logspace(30, -30, 33)[None],
        (2, 2): torch.tensor([[1.0, float("nan")], [float("inf"), 1.0], [2.0, 1.0]]),
        (64, 65): torch.rand(64, 7).mT,
    }
    descending = [S.sort(dim=-1, descending=True).values for S in made.values()]
    return [*descending[:-1], descending[-1].mT.contiguous().mT], list(made)


@pytest.mark.parametrize("rtol", [-1.0, 0.0, 0.3])
def test_tables_of_odd_spectra(rtol: float) -> None:
    values, shapes = spectra()
    tables = triton_backend.summary_tables(values, shapes, rtol)
    for S, (m, n), table in zip(values, shapes, tables, strict=True):
        threshold = rtol if rtol >= 0 else default_rtol(m, n, S.dtype)
        finite = S.isfinite().all(dim=-1)
        want = truth.summarize(S[finite].double().numpy(), m, n, threshold)[1:]
        # Both sum in float64, in different orders.
        stacked = np.stack(want, axis=-1)
        np.testing.assert_allclose(table[finite].numpy(), stacked, rtol=1e-13, atol=1e-14)
        assert table[~finite].isnan().all()


def test_bounds_of_odd_spectra_in_place() -> None:
    values, shapes = spectra()
    bounds = [torch.rand(S.shape, dtype=torch.float64) * S for S in values]
    bounds[0] *= 1e-4
    # Larger than the values, smaller than rounding, unknown, negative.
    bounds[0][0] *= 1e8
    bounds[0][1] *= 1e-12
    bounds[0][2, 3] = float("nan")
    bounds[0][3, 0] = -1.0
    # Zeros that are known to be zero, and zeros of which one may be anything.
    bounds[2][1, 3] = 0.5
    norms = [0.7 * b.norm(dim=-1) for b in bounds]
    norms[0][4] = float("inf")
    prepared = triton_backend.BoundedTables(values, bounds, norms, shapes)
    got = prepared.run()
    want = torch_backend.BoundedTables(values, bounds, norms, shapes).run()
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-14, equal_nan=True)
    assert got[1].isfinite().any()
    # In place: the next run reads what the spectra are then, into the same table.
    before = got.clone()
    values[0].mul_(2.0)
    assert prepared.run() is got
    torch.testing.assert_close(got[0, :5, 4], 2 * before[0, :5, 4], rtol=1e-15, atol=0)


@pytest.mark.parametrize("r", [5, 200])
def test_bounds_that_are_wide_or_no_numbers(r: int) -> None:
    """Errors larger than their values, and a NaN that the norm of all errors does not show."""
    S = torch.rand(3, r, dtype=torch.float64).sort(descending=True)[0] ** 8
    b = torch.full((3, r), 0.1 / r, dtype=torch.float64)
    b[1, r // 2] = torch.nan
    norms = torch.full((3,), torch.inf, dtype=torch.float64)
    norms[2] = 0.03 / r
    got = triton_backend.BoundedTables([S], [b], [norms], [(r, r)]).run()
    want = torch_backend.BoundedTables([S], [b], [norms], [(r, r)]).run()
    assert ((b > S) & (S > 0)).any(dim=1).all()
    assert got[1, 1].isnan().all()
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-15, equal_nan=True)
