"""Ranks and norms against the references, and the bounds on the effective rank."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import spectral_kernels as sk
from spectral_kernels.entry.results import METRICS
from spectral_kernels.rank import truth
from spectral_kernels.rank.summary_bounds import BoundedSummaries
from spectral_kernels.svd.truth import svdvals
from tests.support import matrices

FIELDS = sk.SpectralSummary._fields


def check_summary(got: sk.SpectralSummary, S: np.ndarray, m: int, n: int, dtype: torch.dtype):
    """Compare with the reference on the very values ``S`` that were summarised."""
    eps = torch.finfo(dtype).eps
    want = truth.summarize(S, m, n, max(m, n) * eps)
    # Both sum in float64, in different orders; float32 results are rounded once.
    rtol = max(eps, 1e-14)
    for name, x, y in zip(FIELDS, got, want, strict=True):
        x = np.asarray(x, dtype=np.float64)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * (name == "effective_rank"))


@pytest.mark.parametrize("name", matrices.ZOO)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_summary_of_the_zoo(name: str, dtype: torch.dtype, backend: str) -> None:
    A = torch.from_numpy(matrices.ZOO[name]()).to(dtype)
    summary = sk.spectral_summary(A)
    check_summary(summary, summary.singular_values.double().numpy(), *A.shape, dtype)
    assert torch.equal(summary.singular_values, sk.svdvals(A))
    for field, function in (
        ("effective_rank", sk.effective_rank),
        ("stable_rank", sk.stable_rank),
        ("numerical_rank", sk.numerical_rank),
    ):
        assert torch.equal(getattr(summary, field), function(A))


@pytest.mark.parametrize("name", matrices.SCALED)
def test_scale_does_not_matter(name: str, backend: str) -> None:
    A = torch.from_numpy(matrices.SCALED[name]()).float()
    summary = sk.spectral_summary(A)
    S = summary.singular_values.double().numpy()
    want = truth.summarize(S, *A.shape, max(A.shape) * 2.0**-23)
    for field in ("effective_rank", "effective_rank_exp", "stable_rank", "numerical_rank"):
        assert float(getattr(summary, field)) == pytest.approx(
            float(getattr(want, field)), rel=1e-6
        )
    assert torch.isfinite(summary.frobenius_norm)


def test_zero_matrix_has_no_rank(backend: str) -> None:
    for x in sk.spectral_summary(torch.zeros(2, 7, 5)):
        assert (x == 0).all()
    assert float(sk.effective_rank(torch.zeros(3, 3), form="exponential")) == 0


def test_known_values(backend: str) -> None:
    A = torch.diag(torch.tensor([2.0, 2.0, 2.0, 2.0]))
    assert float(sk.effective_rank(A)) == pytest.approx(np.log(4))
    assert float(sk.effective_rank(A, normalized=True)) == pytest.approx(np.log(4) / 4)
    assert float(sk.effective_rank(A, form="exponential")) == pytest.approx(4)
    assert float(sk.effective_rank(A, form="exponential", normalized=True)) == pytest.approx(1)
    assert float(sk.stable_rank(A)) == 4
    assert float(sk.stable_rank(A, normalized=True)) == 1
    assert float(sk.numerical_rank(A)) == 4
    B = np.diag([4.0, 2.0, 1.0, 1e-20])
    assert float(sk.numerical_rank(B)) == 3
    assert float(sk.numerical_rank(B, rtol=0.3)) == 2
    assert float(sk.numerical_rank(B, rtol=0.0)) == 4
    assert float(sk.stable_rank(B)) == pytest.approx(21 / 16)


def test_numerical_rank_equals_torch(backend: str) -> None:
    for rank in (1, 5, 30):
        A = torch.from_numpy(matrices.with_spectrum(60, 40, np.linspace(1, 2, rank)[::-1]))
        for dtype in (torch.float32, torch.float64):
            assert int(sk.numerical_rank(A.to(dtype))) == rank
            assert int(torch.linalg.matrix_rank(A.to(dtype))) == rank


def test_no_inflated_entropy_of_low_rank(backend: str) -> None:
    """A Gram matrix in float32 would add a floor of 3.5e-4 sigma_1 and 5 % to this entropy."""
    A = matrices.with_spectrum(512, 128, np.linspace(2, 1, 5))
    true = float(truth.effective_rank(svdvals(A.astype(np.float32))))
    assert float(sk.effective_rank(A.astype(np.float32))) == pytest.approx(true, rel=3e-4)


@pytest.mark.parametrize("shape", matrices.EMPTY, ids=str)
def test_empty(shape: tuple[int, ...], backend: str) -> None:
    A = torch.empty(shape)
    for x in sk.spectral_summary(A)[1:]:
        assert x.shape == shape[:-2]
        assert (x == 0).all()
    assert sk.effective_rank(A, normalized=True).shape == shape[:-2]


def test_nan_stays_in_its_matrix(backend: str) -> None:
    A = torch.randn(3, 6, 6)
    clean = sk.spectral_summary(A)
    A[1, 0, 0] = float("inf")
    for x, y in zip(sk.spectral_summary(A), clean, strict=True):
        assert x[1].isnan().all()
        assert torch.equal(x[[0, 2]], y[[0, 2]])
    S = torch.tensor([[2.0, 1.0], [float("nan"), 1.0], [float("inf"), 1.0]])
    for x in sk.summarize_singular_values(S)[1:]:
        assert x.isnan().tolist() == [False, True, True]


def test_summarize_singular_values(backend: str) -> None:
    S = -np.sort(-np.abs(matrices.gaussian(3, 7)))
    check_summary(sk.summarize_singular_values(S, (7, 100)), S, 7, 100, torch.float64)
    check_summary(sk.summarize_singular_values(S), S, 7, 7, torch.float64)
    half = sk.summarize_singular_values(torch.from_numpy(S).half())
    assert half.effective_rank.dtype == half.singular_values.dtype == torch.float32
    ragged = sk.summarize_singular_values([S[0], S[1, :4]], [(7, 9), (4, 4)])
    check_summary(ragged[1], S[1, :4], 4, 4, torch.float64)
    alike = sk.summarize_singular_values([S[0], S[1]], (7, 50))
    check_summary(alike[1], S[1], 7, 50, torch.float64)


def tables_of(spectra: list[torch.Tensor], shapes: list[tuple[int, int]]) -> torch.Tensor:
    bounds = [torch.zeros(S.shape, dtype=torch.float64) for S in spectra]
    norms = [torch.zeros(S.shape[:-1], dtype=torch.float64) for S in spectra]
    return BoundedSummaries(spectra, bounds, norms, shapes).run()[0]


def test_prepared_summaries_equal_the_public_ones(backend: str) -> None:
    A = [torch.randn(9, 7), torch.randn(40, 40)]
    public = sk.spectral_summary(A)
    spectra = [s.singular_values for s in public]
    shapes = [(9, 7), (40, 40)]
    tables = tables_of(spectra, shapes)
    assert tables.shape == (2, 7)
    assert tables.dtype == torch.float64
    for summary, table in zip(public, tables, strict=True):
        for metric, value in zip(METRICS, table.float(), strict=True):
            assert torch.equal(getattr(summary, metric), value)
    # Mixed dtypes, and a batch.
    mixed = [torch.rand(2, 3).sort(descending=True).values, torch.ones(4, dtype=torch.float64)]
    got = tables_of(mixed, [(3, 3), (4, 4)])
    assert got.shape == (3, 7)
    assert float(got[2, METRICS.index("nuclear_norm")]) == 4.0
    assert tables_of([], []).shape == (0, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_feature_rank(dtype: torch.dtype, backend: str) -> None:
    """The rank of the covariance, as numpy computes it from the covariance itself."""
    generator = matrices.rng()
    # Whole numbers are exact in float32 too: a mean a thousand times the spread, which the
    # covariance does not see.
    signal = generator.integers(-9, 10, (300, 6)) @ generator.integers(-9, 10, (6, 40))
    H = signal + 1e5 * generator.integers(1, 10, 40)
    got = sk.feature_rank(torch.from_numpy(H).to(dtype))
    assert got.dtype == dtype
    assert int(got) == np.linalg.matrix_rank(np.cov(H, rowvar=False)) == 6
    assert int(sk.feature_rank(H, rtol=0.9)) < 6
    assert float(sk.feature_rank(np.ones((10, 4)))) == 0


@pytest.mark.parametrize("value", [3.14159, 0.1, 1e307, 1.7e308, -1e308, 1e-310, 5e-324, 0.0])
def test_feature_rank_of_equal_samples_and_of_any_magnitude(value: float, backend: str) -> None:
    for samples in (1, 2, 10, 64, 1000):
        assert float(sk.feature_rank(np.full((samples, 40), value))) == 0
    if abs(value) > 1e-300:
        H = np.outer(np.cos(np.arange(50.0)), np.sin(np.arange(1.0, 9.0)))
        H = H + np.outer(np.arange(50.0) % 7 / 7 - 1, np.arange(8.0) % 3 - 1)
        H *= value / np.abs(H).max()
        assert float(sk.feature_rank(H)) == 2


def test_feature_rank_of_a_fresh_network() -> None:
    """12 layers of width 400, weights eight times PyTorch's: no layer is below three quarters of
    the width by the authors' rule, in float64; six of these were by the rounding of float32."""
    datasets = pytest.importorskip("sklearn.datasets")
    torch.manual_seed(0)
    H = torch.from_numpy(datasets.load_digits().data[:1000]).float() / 16
    layers = []
    with torch.no_grad():
        for _ in range(11):
            layer = torch.nn.Linear(H.shape[1], 400)
            for parameter in layer.parameters():
                parameter *= 8
            H = torch.relu(layer(H))
            layers.append(H)
    found = [int(rank) for rank in sk.feature_rank(layers)]
    covariances = [np.cov(H.double().numpy(), rowvar=False) for H in layers]
    # Near the threshold a value of the covariance has errors of its own size.
    theirs = [np.linalg.matrix_rank(covariance) for covariance in covariances]
    np.testing.assert_allclose(found, theirs, atol=2)
    assert min(found) >= 300
    # float32's tolerance, for which a fresh network has a tunnel of six layers.
    loose = 1000 * torch.finfo(torch.float32).eps
    assert sum(int(sk.feature_rank(H, rtol=loose)) < 300 for H in layers) >= 5


# The bounds of the effective rank.


def check_bounds(S: np.ndarray, k: int, slack: float = 0.0) -> tuple[float, float, float]:
    true = float(truth.effective_rank(S))
    # numpy.linalg.norm underflows below 1e-162.
    scale = S[0] if S[0] > 0 else 1.0
    low, high = sk.bounds_from_leading_values(
        S[:k], float(scale * np.linalg.norm(S / scale)), len(S)
    )
    assert low - slack <= true <= high + slack
    return float(low), true, float(high)


@given(
    values=st.lists(
        st.floats(0, 1, width=32) | st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=12
    ),
    exponent=st.floats(0.2, 12),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
    data=st.data(),
)
def test_bounds_contain_the_truth(values, exponent, scale, data) -> None:
    S = scale * -np.sort(-(np.array(values, dtype=np.float64) ** exponent))
    check_bounds(S, data.draw(st.integers(1, len(S))))


@given(k=st.integers(1, 6), q=st.integers(1, 9), seed=st.integers(0, 10**6), full=st.floats(0, 1))
def test_bounds_are_attained(k: int, q: int, seed: int, full: float) -> None:
    """Both extreme tails are spectra that fit, so no tighter bound is true."""
    lead = -np.sort(-np.random.default_rng(seed).uniform(0.1, 1, k))
    flat = np.full(q, full * lead[-1])
    low, true, high = check_bounds(np.concatenate([lead, flat]), k)
    # The tail is known to sqrt(eps) where it is nothing beside the norm.
    assert true == pytest.approx(high, abs=1e-10 if full > 1e-3 else 1e-5)
    spiked = np.zeros(q)
    spiked[: int(full * q)] = lead[-1]
    if int(full * q) < q:
        spiked[int(full * q)] = lead[-1] * 0.37
    low, true, high = check_bounds(np.concatenate([lead, spiked]), k)
    assert true == pytest.approx(low, abs=1e-12)


@given(seed=st.integers(0, 10**6), k=st.integers(1, 4), q=st.integers(2, 5))
def test_no_tail_beats_the_bounds(seed: int, k: int, q: int) -> None:
    """Many random tails with the same sum of squares, all within."""
    generator = np.random.default_rng(seed)
    lead = -np.sort(-generator.uniform(0.2, 1, k))
    tail = generator.uniform(0, lead[-1], q) ** generator.uniform(0.3, 6)
    tail = np.minimum(tail, lead[-1])
    norm = np.linalg.norm(tail)
    low, high = sk.bounds_from_leading_values(
        lead, float(np.hypot(np.linalg.norm(lead), norm)), k + q
    )
    other = np.abs(generator.standard_normal((200, q))) ** generator.uniform(0.2, 4, (200, 1))
    other *= norm / np.linalg.norm(other, axis=1, keepdims=True)
    fits = other[(other <= lead[-1]).all(axis=1)]
    spectra = np.concatenate([np.tile(lead, (len(fits), 1)), -np.sort(-fits)], axis=1)
    entropies = truth.effective_rank(spectra)
    assert ((low - 1e-12 <= entropies) & (entropies <= high + 1e-12)).all()


def test_bounds_shrink_as_more_is_known() -> None:
    S = svdvals(matrices.gaussian(60, 50))
    widths = []
    for k in (1, 5, 20, 40, 50):
        low, _, high = check_bounds(S, k)
        widths.append(high - low)
    assert all(b < a for a, b in itertools.pairwise(widths))
    assert widths[-1] < 1e-13


def test_bounds_allow_for_rounded_input() -> None:
    """In float32 the tail of a rank-one matrix is known to sqrt(eps) only, and is said to be."""
    S = np.zeros(50)
    S[0] = 1 / 3
    low, high = sk.bounds_from_leading_values(S[:1].astype(np.float32), np.float32(1 / 3), 50)
    assert low == 0 < high < 0.1
    exact_low, exact_high = sk.bounds_from_leading_values(S[:1], 1 / 3, 50)
    assert exact_low == 0
    assert exact_high < 1e-4


def test_bounds_of_batches_kinds_and_special_values() -> None:
    S = torch.tensor([[3.0, 1.0], [0.0, 0.0], [float("nan"), 1.0]], dtype=torch.float64)
    norm = torch.tensor([3.3, 0.0, 4.0], dtype=torch.float64)
    low, high = sk.bounds_from_leading_values(S, norm, 6)
    assert low.shape == high.shape == (3,)
    assert low[1] == high[1] == 0
    assert low[2].isnan()
    assert high[2].isnan()
    assert 0 < low[0] < high[0] < np.log(6)
    as_numpy = sk.bounds_from_leading_values(S[0].numpy(), 3.3, 6)
    assert isinstance(as_numpy[0], np.ndarray)
    assert float(as_numpy[1]) == float(high[0])
    # A norm below that of the given values is rounding: nothing is left for the tail.
    pinned = sk.bounds_from_leading_values(np.array([3.0, 1.0]), 3.0, 6)
    assert float(pinned[0]) == pytest.approx(float(pinned[1]), abs=1e-12)
