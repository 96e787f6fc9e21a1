"""Bounds of ranks and norms: never exceeded by errors made to exceed them, and small."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.entry.results import METRICS
from spectral_kernels.rank import truth

Float64 = np.ndarray


def spectra(r: int) -> dict[str, Float64]:
    """Spectra that differ in how much the bounds weigh on what."""
    index = np.arange(r)
    return {
        "flat": np.ones(r),
        "linear": 1.0 - index / r,
        "decaying": 0.7**index,
        "power": (index + 1.0) ** -1.0,
        "low rank": (index < max(1, r // 8)) * 1.0,
        "low rank over noise": np.where(index < max(1, r // 8), 1.0, 1e-6),
        "one large": np.where(index == 0, 1.0, 1e-3),
    }


def errors_made_to_hurt(
    s: Float64, b: Float64, beta: float, generator: np.random.Generator
) -> list[Float64]:
    """Errors within b and beta: along the gradients of the metrics, in the corners, random."""
    p = np.maximum(s, 1e-12 * s[0]) / s.sum()
    entropy = float(truth.effective_rank(s))
    gradient = np.log(p) + entropy
    directions = [gradient, np.sign(gradient), np.ones_like(s), s, 1.0 / p, np.eye(len(s))[0]]
    directions += [generator.choice([-1.0, 1.0], len(s)) for _ in range(6)]
    directions += [generator.normal(size=len(s)) for _ in range(6)]
    found = []
    for direction, sign in itertools.product(directions, (-1.0, 1.0)):
        # Along the direction until it leaves the box, and in the corner that it points to.
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = np.where(direction != 0, b / np.abs(direction), np.inf).min()
        for d in (direction * min(reach, 1e300), np.sign(direction) * b, direction):
            d = np.clip(sign * d, -np.minimum(b, s), b)
            found.append(d * min(1.0, beta / max(np.linalg.norm(d), 1e-300)))
    return found


def bounds_of(s: Float64, b: Float64, beta: float | None) -> dict[str, float]:
    norms = None if beta is None else np.float64(beta)[None]
    summary = sk.bounds_from_value_bounds(s[None], b[None], error_norms=norms)
    return {metric: float(getattr(summary, metric)[0]) for metric in METRICS}


@pytest.mark.parametrize("kind", spectra(2))
@pytest.mark.parametrize("r", [1, 2, 5, 64])
def test_no_error_within_the_bounds_exceeds_them(kind: str, r: int, backend: str) -> None:
    generator = np.random.default_rng(r)
    s = spectra(r)[kind]
    rtol = r * 2.0**-52
    mine = truth.summarize(s, r, r, rtol)
    tightest = dict.fromkeys(METRICS, 0.0)
    for size, shape in itertools.product(
        (1e-12, 1e-6, 1e-3, 3e-2, 0.3), ("equal", "random", "relative")
    ):
        b = {
            "equal": np.full(r, size),
            "random": size * generator.random(r),
            "relative": size * s,
        }[shape]
        for beta in (np.linalg.norm(b), 0.1 * np.linalg.norm(b)):
            bounds = bounds_of(s, b, beta)
            for d in errors_made_to_hurt(s, b, beta, generator):
                # The first is sigma_1. Where others change places, only bounds that are equal
                # allow it, but no metric knows of it.
                if shape != "equal" and (s + d)[0] < (s + d).max():
                    continue
                true = truth.summarize(s + d, r, r, rtol)
                for metric in METRICS:
                    change = abs(float(getattr(true, metric)) - float(getattr(mine, metric)))
                    assert change <= bounds[metric] * (1 + 1e-9), (metric, size, shape)
                    if bounds[metric] > 0:
                        tightest[metric] = max(tightest[metric], change / bounds[metric])
    if r >= 5:
        # The bounds are of the size of what the worst of these errors do.
        assert tightest["nuclear_norm"] > 0.9
        assert tightest["frobenius_norm"] > 0.5
        assert tightest["effective_rank"] > 0.3
        assert tightest["stable_rank"] > 0.3


@pytest.mark.parametrize("r", [8, 64, 256])
def test_small_errors_leave_ranks_known(r: int, backend: str) -> None:
    """A bound of 1e-4 sigma_1 on every value, as a tracker gives, says the ranks to 1e-3."""
    for kind in ("flat", "linear"):
        s = spectra(r)[kind]
        b = np.full(r, 1e-4)
        mine = truth.summarize(s, r, r, 1e-12)
        bounds = bounds_of(s, b, None)
        assert bounds["effective_rank"] < 1e-3 * float(mine.effective_rank), kind
        assert bounds["effective_rank_exp"] < 2e-3 * float(mine.effective_rank_exp), kind
        assert bounds["stable_rank"] < 1e-3 * float(mine.stable_rank), kind
        # A tenth of the 2-norm is a tenth of the doubt, where all values are much larger.
        if kind == "flat":
            norm = 0.1 * np.linalg.norm(b)
            tenth = bounds_of(s, b, norm)["effective_rank"]
            assert tenth < 0.11 * bounds["effective_rank"] or tenth < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_backend_says_the_same(
    dtype: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    spectra_of, bounds, norms = [], [], []
    for r in (1, 3, 17, 64):
        S = torch.rand(2, 5, r, dtype=dtype, generator=generator).sort(descending=True)[0]
        S[0, 1] = 0.0
        S[0, 2, r // 2 :] = 0.0
        b = S.double() * 10 ** (-6 * torch.rand(2, 5, r, dtype=torch.float64, generator=generator))
        b[0, 3] = math.inf
        b[1, 1] += 1e-3
        b[1, 2] = 1.0
        b[1, 3, r // 2] = math.nan
        spectra_of.append(S)
        bounds.append(b)
        norms.append(b.norm(dim=-1) * 0.5)
    results = []
    for name in (backend, "torch"):
        monkeypatch.setenv("SPECTRAL_KERNELS_BACKEND", name)
        results.append(sk.bounds_from_value_bounds(spectra_of, bounds, error_norms=norms))
    for mine, theirs in zip(*results, strict=True):
        for metric, x, y in zip(sk.SpectralSummary._fields, mine, theirs, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-15, equal_nan=True, msg=metric)
        assert torch.isnan(mine.stable_rank[1, 3])
        assert torch.isfinite(mine.effective_rank[0, 3])


def test_zero_matrices_and_what_may_be_one(backend: str) -> None:
    zero = sk.bounds_from_value_bounds(
        torch.zeros(4), torch.full((4,), 1.4e-45, dtype=torch.float64)
    )
    assert all((x == 0).all() for x in zero[1:])
    # Values that the errors could explain say nothing about the ranks.
    lost = sk.bounds_from_value_bounds(
        torch.tensor([1.0, 0.5, 0.0]), torch.full((3,), 2.0).double()
    )
    assert float(lost.effective_rank) >= math.log(3) - 0.64
    assert float(lost.effective_rank_exp) >= 1.88
    assert float(lost.stable_rank) >= 1.75
    assert float(lost.numerical_rank) == 3
    maybe = sk.bounds_from_value_bounds(torch.zeros(3), torch.ones(3).double())
    assert float(maybe.effective_rank) == pytest.approx(math.log(3))
    assert float(maybe.effective_rank_exp) == pytest.approx(3)
    assert float(maybe.stable_rank) == 3


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e290])
def test_scale_does_not_matter(scale: float, backend: str) -> None:
    s = spectra(20)["power"]
    plain, scaled = (bounds_of(c * s, c * 1e-3 * s, None) for c in (1.0, scale))
    for metric in METRICS:
        expected = plain[metric] * (scale if metric.endswith("norm") else 1.0)
        assert scaled[metric] == pytest.approx(expected, rel=1e-6), metric


def test_kinds_batches_and_empty(backend: str) -> None:
    S = np.ones((2, 3, 4), dtype=np.float32)
    b = np.full(S.shape, 1e-3)
    batched = sk.bounds_from_value_bounds(S, b)
    assert isinstance(batched.stable_rank, np.ndarray)
    assert batched.stable_rank.shape == (2, 3)
    assert batched.singular_values is not None
    one = sk.bounds_from_value_bounds(S[0, 0], b[0, 0])
    assert float(one.effective_rank) == float(batched.effective_rank[1, 2])
    several = sk.bounds_from_value_bounds([S, S[0]], [b, b[0]], shape=(9, 4))
    assert [x.nuclear_norm.shape for x in several] == [(2, 3), (3,)]
    assert sk.bounds_from_value_bounds([], []) == []
    none = sk.bounds_from_value_bounds(torch.zeros(2, 0), torch.zeros(2, 0).double())
    assert none.effective_rank.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bounds": torch.ones(3).double()}, r"S has shape \(4,\), bounds \(3,\)"),
        ({"error_norms": torch.ones(2).double()}, r"error_norms \(2,\); expected"),
        ({"shape": (5, 9)}, r"shape is \(5, 9\), which has 5 singular values, and S has 4"),
        ({"bounds": [torch.ones(4).double()]}, "do not match"),
        ({"bounds": np.ones(4)}, "different kinds"),
    ],
)
def test_wrong_arguments(change: dict[str, object], words: str) -> None:
    arguments = {"S": torch.ones(4), "bounds": torch.ones(4).double(), **change}
    with pytest.raises(ValueError, match=words):
        sk.bounds_from_value_bounds(**arguments)
    with pytest.raises(TypeError, match="bounds has dtype int64"):
        sk.bounds_from_value_bounds(torch.ones(4), torch.ones(4, dtype=torch.int64))
