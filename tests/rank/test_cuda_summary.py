"""Ranks and norms by csrc/cuda/summary.cu, on the host and, where there is one, on a device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_kernels.rank import cuda_backend, torch_backend, truth
from spectral_kernels.runtime.cuda import launcher
from spectral_kernels.runtime.cuda.table import SUMMARY_JOBS
from spectral_kernels.runtime.numerics import default_rtol
from tests.support import cuda_on_host
from tests.support.cuda_on_host import HostLauncher, SanitizedLauncher

HOSTS = {
    "host": HostLauncher,
    "thread sanitizer": lambda: SanitizedLauncher("thread"),
    "address sanitizer": lambda: SanitizedLauncher("address"),
}


@pytest.fixture(params=[*HOSTS, pytest.param("device", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where tensors live; launches go to the host's stand-in or to the driver."""
    if request.param == "device":
        if launcher.refusal() is not None:
            pytest.skip(str(launcher.refusal()))
        yield "cuda"
        return
    if cuda_on_host.COMPILER is None:
        pytest.skip("needs a C++ compiler")
    with launcher.installed(HOSTS[request.param]()):
        yield "cpu"


def spectra(device: str) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """Batches of odd sizes, extremes of scale, zeros, NaN, empty ones, strides."""
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
    strided = descending[-1].mT.contiguous().mT
    return [S.to(device) for S in (*descending[:-1], strided)], list(made)


@pytest.mark.parametrize("rtol", [-1.0, 0.0, 0.3])
def test_tables(device: str, rtol: float) -> None:
    values, shapes = spectra(device)
    tables = cuda_backend.summary_tables(values, shapes, rtol)
    for S, (m, n), table in zip(values, shapes, tables, strict=True):
        threshold = rtol if rtol >= 0 else default_rtol(m, n, S.dtype)
        finite = S.isfinite().all(dim=-1).cpu()
        known = S.cpu()[finite].double().numpy()
        want = np.stack(truth.summarize(known, m, n, threshold)[1:], axis=-1)
        # Both sum in float64, in different orders.
        np.testing.assert_allclose(table.cpu()[finite].numpy(), want, rtol=1e-13, atol=1e-14)
        assert table.cpu()[~finite].isnan().all()


def test_bounds(device: str) -> None:
    values, shapes = spectra(device)
    bounds = [torch.rand(S.shape, dtype=torch.float64, device=S.device) * S for S in values]
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
    prepared = cuda_backend.BoundedTables(values, bounds, norms, shapes)
    got = prepared.run()
    want = torch_backend.BoundedTables(values, bounds, norms, shapes).run()
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-14, equal_nan=True)
    assert got[1].isfinite().any()
    # In place: the next run reads what the spectra are then, into the same table.
    before = got.clone()
    values[0].mul_(2.0)
    assert prepared.run() is got
    torch.testing.assert_close(got[0, :5, 4], 2 * before[0, :5, 4], rtol=1e-15, atol=0)


def test_a_list_takes_one_launch(device: str) -> None:
    launched = count_launches()
    with launched as names:
        many = [torch.rand(1, 3, device=device) for _ in range(SUMMARY_JOBS + 1)]
        tables = cuda_backend.summary_tables(many[:-1], [(3, 3)] * SUMMARY_JOBS, -1.0)
        assert names == ["summarize"]
        tables += cuda_backend.summary_tables(many, [(3, 3)] * len(many), -1.0)
        assert names == ["summarize"] * 3
    want = torch_backend.summary_tables(many, [(3, 3)] * len(many), -1.0)
    for got, expected in zip(tables, [*want[:-1], *want], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-14)


@contextlib.contextmanager
def count_launches() -> Iterator[list[str]]:
    """The names of what is launched meanwhile."""
    names: list[str] = []
    current = launcher._current()

    class Counting:
        def limits(self, device: torch.device) -> launcher.Limits:
            return current.limits(device)

        def launch(self, kernel: launcher.Kernel, *rest: object) -> None:
            names.append(kernel.name)
            current.launch(kernel, *rest)  # type: ignore[arg-type]

    with launcher.installed(Counting()):  # type: ignore[arg-type]
        yield names
