"""Alignments and clusters where tiles end and clusters cross them, in any order of programs."""

from __future__ import annotations

import itertools
import mmap

import numpy as np
import pytest
import torch

from spectral_kernels.alignment import torch_backend, triton_backend, truth
from spectral_kernels.alignment.prepared import PreparedClusters, PreparedDiagonals, align
from spectral_kernels.runtime import dispatch

# Linux's MAP_NORESERVE, which Python 3.11 does not name.
NO_RESERVE = 0x4000


def labels(*sizes: int) -> torch.Tensor:
    """Return the first index of the cluster of every vector, for clusters of these sizes."""
    starts = itertools.accumulate(sizes, initial=0)
    return torch.tensor([s for s, size in zip(starts, sizes, strict=False) for _ in range(size)])


def framed(x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` in a frame of NaN, which nobody may read."""
    frame = torch.full((x.shape[0] + 70, x.shape[1] + 40), torch.nan, dtype=x.dtype)
    frame[3 : 3 + x.shape[0], 2 : 2 + x.shape[1]] = x
    return frame[3 : 3 + x.shape[0], 2 : 2 + x.shape[1]]


def test_the_kernels_run() -> None:
    assert dispatch.backend("alignment", "cpu") is triton_backend


@pytest.mark.parametrize("k", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("m", [1, 31, 64, 65, 130])
def test_sizes_around_the_tiles(m: int, k: int) -> None:
    U, Vh = torch.randn(m, k), torch.randn(k + 2, m)
    (got,), _ = align(triton_backend, [(framed(U), framed(Vh.mT).mT)], [k])
    want = truth.alignment_diagonal(U.numpy(), Vh.numpy(), k)
    np.testing.assert_allclose(got, want, rtol=2**-23, atol=1e-12)


@pytest.mark.parametrize(
    "sizes",
    [(40,), (1,) * 40, (15, 2, 23), (16, 16, 8), (1, 17, 1, 21), (17, 1, 1, 1, 20), (3, 70, 2)],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_clusters_across_tiles(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    first = labels(*sizes)
    k = len(first)
    U, Vh = torch.randn(37, k + 1, dtype=dtype), torch.randn(k, 37, dtype=dtype)
    pair = (framed(U.mT).mT, framed(Vh))
    (line,), (cosines,) = align(triton_backend, [pair], [len(first)], [first])
    (want_line,), (want,) = align(torch_backend, [(U, Vh)], [len(first)], [first])
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(line, want_line, rtol=2 * eps, atol=1e-13)
    torch.testing.assert_close(cosines, want, rtol=16 * eps, atol=0)


def test_a_bad_vector_spoils_its_own_cluster_alone() -> None:
    first = labels(2, 3, 1, 20)
    U, Vh = torch.randn(9, 26), torch.randn(26, 9)
    U[4, 3] = Vh[2, 1] = torch.nan
    _, (cosines,) = align(triton_backend, [(U, Vh)], [len(first)], [first])
    assert cosines.isnan().nonzero().flatten().tolist() == [2, 3, 4]


def test_ragged_types_layouts_and_empty_pairs() -> None:
    """One launch over pairs that differ in everything."""
    wide = torch.randn(3, 20, 30, dtype=torch.float64)
    pairs = [
        (torch.randn(5, 4), torch.randn(4, 5)),
        (torch.randn(4, 50).mT, torch.randn(50, 7).mT),
        (wide[:, ::2, :12], wide.transpose(-2, -1)[:, 3:, 5:15]),
        (torch.randn(2, 3, 6, 6).transpose(0, 1), torch.randn(3, 2, 8, 6)),
        (torch.randn(0, 3), torch.randn(3, 0)),
        (torch.randn(4, 0), torch.randn(3, 4)),
        (torch.randn(0, 4, 4), torch.randn(0, 4, 4)),
    ]
    counts = [min(12, U.shape[-1], Vh.shape[-2]) for U, Vh in pairs]
    first = [(torch.arange(c) // 3 * 3).expand(*U.shape[:-2], c)
             for c, (U, _) in zip(counts, pairs, strict=True)]  # fmt: skip
    got, want = (align(module, pairs, counts, first) for module in (triton_backend, torch_backend))
    for mine, theirs in zip(itertools.chain(*got), itertools.chain(*want), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
    for mine, theirs in zip(align(triton_backend, pairs, counts)[0], want[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_the_order_of_programs_does_not_show() -> None:
    """Bit by bit the same whichever program of a pair comes last, and counters end at zero."""
    U, Vh, first = torch.randn(20, 60), torch.randn(60, 20), labels(5, 30, 1, 24)
    prepared = PreparedDiagonals([(U, Vh)], clusters=[first])
    arguments = prepared._alignments._arguments
    tiles = arguments["tiles_ptr"].clone()
    assert len(tiles) == 4
    found = []
    for order in itertools.permutations(range(4)):
        arguments["tiles_ptr"].copy_(tiles[list(order)])
        found.append(prepared.run().clone())
        assert arguments["arrived_ptr"].tolist() == [0]
    assert all(torch.equal(x, found[0]) for x in found)


def test_places_are_counted_in_64_bits() -> None:
    """Vectors beyond 2^31 entries from the first, in memory that exists where it is touched."""
    far = 2**31 + 5
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    memory = torch.frombuffer(mmap.mmap(-1, 16 * far, flags=flags), dtype=torch.float32)
    for strides in ((1, far), (far, 1)):
        U = memory.as_strided((3, 3), strides)
        U.copy_(torch.randn(3, 3))
        first = torch.tensor([0, 0, 2])
        got = align(triton_backend, [(U, U.mT)], [len(first)], [first])
        want = align(torch_backend, [(U.clone(), U.mT.clone())], [len(first)], [first])
        for mine, theirs in zip(itertools.chain(*got), itertools.chain(*want), strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_clusters_of_spectra_longer_than_a_tile(dtype: torch.dtype) -> None:
    lengths, unseen = [1, 63, 64, 65, 0, 200], [-1, 63, -1, 31, 0, -1]
    follows = [True, True, False, False, True, True]
    blocks = (lengths, unseen, follows, dtype)
    on_triton, in_torch = PreparedClusters(*blocks), PreparedClusters(*blocks)
    in_torch._clusters = torch_backend.Clusters(in_torch._spectra)
    drawn = [torch.rand(r, dtype=torch.float64).sort(descending=True)[0] for r in lengths]
    given = torch.cat(drawn) + 1e-4
    for prepared in (on_triton, in_torch):
        prepared.compared.copy_(torch.stack([given, 1e-3 * given]))
        prepared.compared[:, 100] = torch.nan
    for step in range(3):
        values = [x + 1e-3 * torch.rand_like(x) for x in drawn]
        values[3][40] = torch.nan
        bounds = 10 ** -(2 + 4 * torch.rand(sum(lengths), dtype=torch.float64))
        for prepared in (on_triton, in_torch):
            prepared.values.copy_(torch.cat(values))
            prepared.bounds.copy_(bounds)
            prepared.run()
        assert torch.equal(on_triton.first, in_torch.first)
        assert torch.equal(on_triton.alone, in_torch.alone)
        torch.testing.assert_close(
            on_triton.compared, in_torch.compared, rtol=0, atol=0, equal_nan=True
        )
        assert len(on_triton.first.unique()) > 3, step
    assert on_triton.alone.any()
