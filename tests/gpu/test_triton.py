"""Triton kernels on a GPU: the same numbers as elsewhere, one launch, no waiting, in graphs too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from spectral_kernels.alignment import torch_backend as torch_alignment
from spectral_kernels.alignment.prepared import PreparedClusters, PreparedDiagonals, align
from spectral_kernels.entry.results import SVD
from spectral_kernels.rank import torch_backend as torch_rank
from spectral_kernels.runtime import dispatch
from spectral_kernels.runtime.triton import host
from spectral_kernels.snapshot import truth
from spectral_kernels.snapshot.op import PreparedSnapshot

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(autouse=True)
def _on_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    reason = host.refusal()
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setenv(dispatch.ENVIRONMENT, "triton")
    yield
    torch.cuda.set_sync_debug_mode("default")


def check_runs(run: Callable[[], object]) -> None:
    """One kernel, nothing waited for, and the same when captured."""
    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    run()
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        run()
        torch.cuda.synchronize()
    kernels = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert len(kernels) == 1, [e.name for e in kernels]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    torch.cuda.synchronize()


def model(dtype: torch.dtype) -> list[torch.Tensor]:
    """Matrices of many sizes, layouts and scales, some larger than a program's share."""
    shapes = [(768, 768), (3072, 768), (50, 7), (1, 1), (129, 1000), (2, 3, 40, 40)]
    tensors = [torch.randn(shape, device="cuda").to(dtype) for shape in shapes]
    return [*tensors, tensors[1].mT, tensors[0][:, 5:300], tensors[4][1:]]


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_snapshots(dtype: torch.dtype) -> None:
    tensors = model(dtype)
    prepared = PreparedSnapshot(tensors)
    check_runs(prepared.run)
    copies, *told = prepared.run()
    for A, copy in zip(tensors, copies, strict=True):
        assert torch.equal(copy, A.to(copy.dtype))
    want = [truth.statistics(A.double().cpu().numpy()).reshape(-1, 3) for A in tensors]
    np.testing.assert_allclose(torch.stack(told, dim=1).cpu(), np.concatenate(want), rtol=1e-12)


def test_the_order_in_which_programs_end_does_not_show() -> None:
    """Two hundred programs of a matrix race for the last place a thousand times."""
    A = torch.randn(1600, 2048, device="cuda") * torch.logspace(-15, 15, 2048, device="cuda")
    prepared = PreparedSnapshot([A, A[:40].clone(), A.mT])
    first = torch.stack(prepared.run()[1:]).clone()
    for _ in range(1000):
        assert torch.equal(torch.stack(prepared.run()[1:]), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_summaries_and_their_bounds(dtype: torch.dtype) -> None:
    spectra = [
        torch.rand(3, r, dtype=dtype, device="cuda").sort(dim=-1, descending=True)[0]
        for r in (1, 64, 129, 768)
    ]
    bounds = [1e-4 * torch.rand_like(S, dtype=torch.float64) for S in spectra]
    norms = [b.norm(dim=-1) for b in bounds]
    shapes = [(S.shape[-1], 2 * S.shape[-1]) for S in spectra]
    module = dispatch.backend("rank", "cuda")
    assert module.__name__.endswith("triton_backend")
    tables = module.BoundedTables(spectra, bounds, norms, shapes)
    check_runs(tables.run)
    want = torch_rank.BoundedTables(spectra, bounds, norms, shapes).run()
    torch.testing.assert_close(tables.run(), want, rtol=1e-9, atol=1e-15)
    plain = module.summary_tables(spectra, shapes, -1.0)
    torch.testing.assert_close(torch.cat(plain), want[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_alignments_of_vectors_and_clusters(dtype: torch.dtype) -> None:
    def vectors(m: int, n: int, k: int) -> SVD:
        U = torch.randn(k, m, dtype=dtype, device="cuda").mT
        return SVD(U, torch.ones(k, device="cuda"), torch.randn(k, n, dtype=dtype, device="cuda"))

    pairs = [(vectors(m, n, k), vectors(m, n, k)) for m, n, k in ((768, 100, 100), (59, 300, 40))]
    matrices = [(a.U, b.U.mT) for a, b in pairs] + [(a.Vh.mT, b.Vh) for a, b in pairs]
    first = [
        torch.tensor([0, 1, *[2] * 37, *range(39, k)], device="cuda")[:k] for k in (100, 40) * 2
    ]
    module = dispatch.backend("alignment", "cuda")
    assert module.__name__.endswith("triton_backend")
    lines, cosines = PreparedDiagonals(matrices, 100), PreparedDiagonals(matrices, clusters=first)
    check_runs(lines.run)
    check_runs(cosines.run)
    both = align(torch_alignment, matrices, [len(x) for x in first], first)
    want = torch.stack([torch.cat(x) for x in both])
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(cosines.run(), want, rtol=16 * eps, atol=64 * eps)
    torch.testing.assert_close(lines.run(), want[0], rtol=16 * eps, atol=64 * eps)
    repeated = cosines.run().clone()
    for _ in range(300):
        assert torch.equal(cosines.run(), repeated)


def test_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, unseen = [1, 64, 100, 65, 300], [-1, 64, -1, -1, 290]
    follows = [True, True, False, True, True]
    on_gpu = PreparedClusters(lengths, unseen, follows, torch.float32, "cuda")
    monkeypatch.delenv(dispatch.ENVIRONMENT)
    on_cpu = PreparedClusters(lengths, unseen, follows, torch.float32)
    for _ in range(3):
        values = [torch.rand(r).sort(descending=True)[0] for r in lengths]
        on_cpu.values.copy_(torch.cat(values))
        on_cpu.bounds.copy_(10 ** -(1 + 3 * torch.rand(sum(lengths), dtype=torch.float64)))
        on_gpu.values.copy_(on_cpu.values)
        on_gpu.bounds.copy_(on_cpu.bounds)
        on_gpu.run()
        on_cpu.run()
        assert torch.equal(on_gpu.first.cpu(), on_cpu.first)
        assert torch.equal(on_gpu.alone.cpu(), on_cpu.alone)
        torch.testing.assert_close(on_gpu.compared.cpu(), on_cpu.compared, equal_nan=True)
    check_runs(on_gpu.run)
