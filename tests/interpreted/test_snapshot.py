"""The snapshot where its tiles, chunks and layouts end, and whatever the order of its programs."""

from __future__ import annotations

import itertools
import mmap

import numpy as np
import pytest
import torch

from spectral_kernels.runtime import dispatch
from spectral_kernels.snapshot import triton_backend, truth
from spectral_kernels.snapshot.op import snapshot_list

# Linux's MAP_NORESERVE, which Python 3.11 does not name.
NO_RESERVE = 0x4000


def check(tensors: list[torch.Tensor]) -> None:
    copies, *told = snapshot_list(tensors)
    for A, copy in zip(tensors, copies, strict=True):
        assert copy.is_contiguous()
        assert torch.equal(copy, A.to(copy.dtype))
    want = np.concatenate([truth.statistics(A.double().numpy()).reshape(-1, 3) for A in tensors])
    np.testing.assert_allclose(torch.stack(told, dim=1), want, rtol=1e-12)


def test_the_kernel_runs() -> None:
    assert dispatch.backend("snapshot", "cpu") is triton_backend


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sizes_around_tiles_and_chunks(dtype: torch.dtype) -> None:
    tile, chunk = 32 * 32, 32 * 32 * 16
    sizes = [1, tile - 1, tile, tile + 1, chunk - 1, chunk, chunk + 1, 2 * chunk + 3]
    check([torch.randn(1, size).to(dtype) for size in sizes])


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (31, 33), (32, 64), (33, 545), (130, 200)])
def test_transposed_and_other_layouts(shape: tuple[int, int]) -> None:
    m, n = shape
    check(
        [
            torch.randn(n, m).mT,
            torch.randn(n, m).bfloat16().mT,
            torch.randn(n, m + 5)[:, 3:-2].half().mT,
            torch.randn(n, m, dtype=torch.float64).mT,
            torch.randn(m, 3 * n)[:, ::3],
            torch.randn(m + 1, n)[1:],
            torch.randn(m, n + 1)[:, 1:],
            torch.randn(1, n).expand(m, n),
            torch.randn(m * n + 1)[1:].view(m, n),
        ]
    )


def test_batches_whose_copies_are_not_aligned() -> None:
    check([torch.randn(4, 3, 3), torch.randn(3, 5, 7).bfloat16(), torch.randn(7, 2, 3).mT])


def test_copies_of_one_shape_are_at_equal_distances() -> None:
    tensors = [torch.randn(9, 5), torch.randn(4, 4), torch.randn(9, 5).half(), torch.randn(9, 5)]
    copies = triton_backend.packed(tensors)
    places = [copies[i].data_ptr() for i in (0, 2, 3)]
    assert places[1] - places[0] == places[2] - places[1] == 256
    assert all(copy.data_ptr() % 64 == 0 for copy in copies)


def test_the_order_of_programs_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit the same, whichever program of a matrix comes last, and counters end at zero."""
    A = torch.randn(150, 333) * torch.logspace(-20, 20, 333)
    found = []
    tables = triton_backend._tables
    for order in itertools.permutations(range(4)):

        def shuffled(*arguments, order=order):
            jobs, chunks = tables(*arguments)
            assert len(chunks) == 4
            return jobs, chunks[list(order)].contiguous()

        monkeypatch.setattr(triton_backend, "_tables", shuffled)
        prepared = triton_backend.Copies([A], [torch.empty_like(A)])
        prepared.run()
        prepared.run()
        assert prepared._arguments["arrived_ptr"].tolist() == [0]
        found.append(prepared.statistics.clone())
    assert all(torch.equal(x, found[0]) for x in found)


def test_places_are_counted_in_64_bits() -> None:
    """Rows and columns beyond 2^31 entries from the first, in memory that exists where touched."""
    far = 2**31 + 5
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    memory = torch.frombuffer(mmap.mmap(-1, 10 * far, flags=flags), dtype=torch.float16)
    for strides in ((far, 1), (1, far), (2 * far, 3), (3, 2 * far)):
        A = memory.as_strided((3, 2) if strides[0] < far else (2, 3), strides)
        A.copy_(torch.randn(A.shape))
        check([A])
    batch = memory.as_strided((3, 2, 2), (far, 2, 1))
    batch.copy_(torch.randn(batch.shape))
    check([batch])
