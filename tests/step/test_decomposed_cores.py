"""Decomposed layers measured through small cores: never formed, with the error of the core."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.decomposed.layers.embedding import DecomposedEmbedding
from spectral_monitor.decomposed.layers.linear import DecomposedLinear
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.step.bounds import estimate_from_leading
from spectral_monitor.step.leading_rows import leading_rows
from spectral_monitor.step.moved_bounds import moved
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import spectral_kernels as sk
from spectral_kernels.entry.results import METRICS, Decomposed
from tests.support.monitored import METHODS, due, truth


class NoProducts(TorchDispatchMode):
    """Fails where a tensor of the sides of a whole matrix comes to be."""

    def __init__(self, m: int, n: int) -> None:
        super().__init__()
        self.sides = {m, n}
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, Tensor) and x.dim() >= 2 and not x.is_meta:
                self.seen += 1
                assert not self.sides <= set(x.shape), (func, tuple(x.shape))
        return result


@pytest.mark.parametrize("method", METHODS)
def test_the_matrix_is_never_formed(method: Any) -> None:
    m, n, k = 151, 139, 7
    layers = [DecomposedLinear(n, m, rank=k), DecomposedEmbedding(m, n, rank=k)]
    model = nn.ModuleList(layers)
    with NoProducts(m, n) as mode:
        watch = SpectralMonitor(model, every=1, method=method, watch=("weights", "updates"))
        for _ in range(3):
            with torch.no_grad():
                for p in model.parameters():
                    p += 0.01 * torch.randn_like(p)
            due(watch.step())
        watch.state_dict()
        watch.explain()
    assert mode.seen > 50
    with pytest.raises(AssertionError), NoProducts(m, n):
        _ = layers[0].weight


@pytest.mark.parametrize("options", [{}, {"k": 12}], ids=["all values", "k"])
def test_cores_too_large_to_track_whole(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    weights = {
        "x.U": torch.linalg.qr(torch.randn(450, 390))[0],
        "x.Sigma": torch.diag(0.9 ** torch.arange(390.0)),
        "x.Vh": torch.linalg.qr(torch.randn(430, 390))[0].mT.contiguous(),
        "y.U": torch.randn(40, 9),
        "y.Sigma": torch.randn(9, 9),
        "y.Vh": torch.randn(9, 30),
        "z": torch.randn(12, 30),
    }
    watch = SpectralMonitor(weights, pairs=None, **{"every": 1, **options})
    for seed in range(3):
        torch.manual_seed(seed)
        for name in weights:
            weights[name] += 1e-3 * torch.randn(weights[name].shape) / weights[name].shape[0] ** 0.5
        frame = due(watch.step())
        for name, row in frame.matrices.items():
            if name == "z":
                continue
            A = torch.linalg.multi_dot(
                [weights[f"{name[0]}.{x}"].double() for x in Decomposed._fields]
            )
            expected = truth(A)
            S = expected.pop("singular_values")
            error = np.abs(row.singular_values - S[: len(row.singular_values)])
            assert (error <= row.singular_value_bounds).all(), name
            for metric, value in expected.items():
                assert abs(getattr(row, metric) - value) <= row.bounds[metric], (name, metric)
        assert frame.agreement["x.weight"][0] > 0.9
        (_, tracker) = watch._measurement.solver.trackers[1]  # type: ignore[attr-defined]
        vectors = tracker._returned[0]
        assert (vectors.U.shape[0], vectors.Vh.shape[1]) == (450, 430)


def test_bounds_move_with_the_error_of_a_core() -> None:
    generator = np.random.default_rng(0)
    for r, k, error in itertools.product((1, 2, 30), (1, 5, 30), (1e-6, 1e-3, 0.2, 3.0)):
        if k > r:
            continue
        c = np.sort(generator.exponential(size=r).astype(np.float32))[::-1].astype(np.float64)
        norm = float(np.linalg.norm(c))
        s = c[:k].astype(np.float32)
        low, high = sk.bounds_from_leading_values(torch.tensor(s), norm, r)
        estimate = estimate_from_leading(s, norm, (r, 2 * r), (float(low), float(high)), rank=r)
        found = moved(estimate, s, (r, 2 * r), r, error)
        for _ in range(20):
            shift = generator.normal(size=r)
            shift *= error * generator.uniform() / np.linalg.norm(shift)
            sigma = np.sort(np.abs(c + shift))[::-1]
            expected = truth(torch.diag(torch.from_numpy(sigma.copy())))
            assert (np.abs(s - sigma[:k]) <= found.value_bounds).all()
            for metric, value, bound in zip(METRICS, found.values, found.bounds, strict=True):
                if metric == "numerical_rank":
                    floor = 2 * r * np.finfo(np.float32).eps * sigma[0]
                    expected[metric] = np.count_nonzero(sigma > floor)
                assert abs(value - expected[metric]) <= bound, (metric, r, k, error)


def test_rows_of_leading_triplets_carry_the_error_of_their_core() -> None:
    (matrix,) = SpectralMonitor(nn.Linear(8, 6, bias=False), every=1, pairs=None).matrices
    values, norm = torch.tensor([2.0, 1.0]), torch.tensor([2.5], dtype=torch.float64)

    def row(error: float):
        (found,) = leading_rows(
            [matrix], "randomized", [values], norm, finite=[True], work=[""],
            bounds=[torch.full((2,), torch.inf, dtype=torch.float64)], errors=[error],
        ).values()  # fmt: skip
        return found

    plain, widened = row(0.0), row(0.25)
    assert widened.bounds["spectral_norm"] == pytest.approx(plain.bounds["spectral_norm"] + 0.25)
    np.testing.assert_allclose(
        widened.singular_value_bounds, plain.singular_value_bounds + 0.25, rtol=1e-6
    )
