"""Clusters of singular values, agreement of their subspaces, and what chance gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import spectral_kernels as sk
from spectral_kernels.alignment import truth
from spectral_kernels.alignment.clusters import cluster_agreement_list
from spectral_kernels.alignment.prepared import PreparedAgreement, PreparedClusters
from tests.support import matrices


def labels_of(chains: list[list[int]]) -> list[int]:
    return [chain[0] for chain in chains for _ in chain]


def wide(svd: Any) -> sk.SVD:
    return sk.SVD(*(np.asarray(x, dtype=np.float64) for x in svd))


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=30),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_clusters_are_the_chains_of_overlapping_intervals(
    values: list[float], scale: float, seed: int
) -> None:
    S = np.sort(np.array(values))[::-1].copy()
    radius = scale * np.random.default_rng(seed).random(len(S))
    chains = truth.clusters(S, radius)
    assert sk.singular_value_clusters(S, radius).tolist() == labels_of(chains)
    flags = sk.identifiable_vectors(S, radius)
    expected = [len(chain) == 1 for chain in chains for _ in chain]
    assert flags.tolist() == (np.array(expected) & (S - radius > 0)).tolist()


def test_clusters_of_batches_lists_and_kinds() -> None:
    S = torch.tensor([[3.0, 2.9, 1.0], [3.0, 2.0, 1.0]])
    assert sk.singular_value_clusters(S, 0.1).tolist() == [[0, 0, 2], [0, 1, 2]]
    per_matrix = torch.tensor([[0.01], [0.6]])
    assert sk.singular_value_clusters(S, per_matrix).tolist() == [[0, 1, 2], [0, 0, 0]]
    listed = sk.singular_value_clusters([S[0], S[1, :2].numpy()], [0.1, np.array([0.5, 0.6])])
    assert listed[0].tolist() == [0, 0, 2]
    assert isinstance(listed[1], np.ndarray)
    assert listed[1].dtype == np.int64
    assert listed[1].tolist() == [0, 0]
    assert sk.singular_value_clusters(torch.empty(2, 0), 1.0).shape == (2, 0)
    assert sk.identifiable_vectors(torch.empty(0), 1.0).shape == (0,)
    assert sk.singular_value_clusters([], 1.0) == []
    # Half types are compared as they are; NaN joins nothing.
    assert sk.singular_value_clusters(S.bfloat16(), 0.1).tolist() == [[0, 0, 2], [0, 1, 2]]
    S[0, 1] = float("nan")
    assert sk.singular_value_clusters(S, 9.0).tolist() == [[0, 1, 2], [0, 0, 0]]
    assert sk.identifiable_vectors(S, 0.1).tolist() == [[True, False, True], [True] * 3]


def test_prepared_clusters_are_those_of_each_spectrum(backend: str) -> None:
    """Spectra that lie one after the other do not join; what moved counts as far as it moved."""
    unseen, follows = [-1, 3, -1, -1], [True, True, True, False]
    prepared = PreparedClusters([2, 3, 0, 1], unseen, follows, torch.float32)
    prepared.values.copy_(torch.tensor([2.0, 1.0, 1.0, 1.0, 0.5, 3.0]))
    prepared.run()
    assert prepared.first.tolist() == [0, 1, 0, 0, 2, 0]
    # The third spectrum goes on after its last value, whose neighbour is not seen.
    assert prepared.alone.tolist() == [True, True, False, False, False, True]
    assert prepared.compared[0, 5].isnan()
    generator = torch.Generator().manual_seed(2)
    other = torch.cat([prepared.values.double()[:5], torch.tensor([torch.nan])])
    error = torch.zeros(6, dtype=torch.float64)
    for step in range(20):
        values = torch.rand(6, generator=generator, dtype=torch.float64).float().double()
        values[4] = torch.nan if step == 3 else values[4]
        prepared.values.copy_(values)
        prepared.bounds.copy_(0.1 * torch.rand(6, generator=generator))
        bounds = prepared.bounds.clone()
        prepared.run()
        for start, stop in ((0, 2), (2, 5), (5, 6)):
            own = slice(start, stop)
            want, known = by_definition(values[own], bounds[own], other[own], error[own])
            assert prepared.first[own].tolist() == want
            if (start, stop) == (2, 5):
                known = [flag and i < want[-1] for i, flag in enumerate(known)]
            assert prepared.alone[own].tolist() == known
        ok = values.isfinite() & torch.tensor([True] * 5 + [False])
        other, error = torch.where(ok, values, other), torch.where(ok, bounds, error)
        assert torch.equal(prepared.compared[:, :5], torch.stack([other, error])[:, :5])


def by_definition(
    S: torch.Tensor, bounds: torch.Tensor, other: torch.Tensor, error: torch.Tensor
) -> tuple[list[int], list[bool]]:
    """Clusters and flags, value by value; any of them may be NaN."""
    r, spectra = len(S), (S.tolist(), other.tolist())
    moved = [abs(a - b) if abs(a - b) >= 0 else 0.0 for a, b in zip(*spectra, strict=True)]
    radius = [
        float(bounds[i])
        + (0.0 if other[i].isnan() else float(error[i]))
        + max(moved[max(i - 1, 0) : i + 2])
        for i in range(r)
    ]
    first = list(range(r))
    for i in range(1, r):
        if any(s[i - 1] - radius[i - 1] <= s[i] + radius[i] for s in spectra):
            first[i] = first[i - 1]
    alone = [
        first.count(first[i]) == 1 and S[i] - radius[i] > 0 and not float(other[i]) - radius[i] <= 0
        for i in range(r)
    ]
    return first, [bool(flag) for flag in alone]


@pytest.mark.parametrize(
    ("S", "radius", "error", "words"),
    [
        (torch.ones(3), -0.1, ValueError, "no negative number, got -0.1"),
        (torch.ones(3), torch.ones(2), ValueError, r"shape \(2,\); expected one that broadcasts"),
        (torch.ones(3), torch.ones(1, 3), ValueError, r"shape \(1, 3\); expected one"),
        (torch.tensor(1.0), 0.1, ValueError, "at least one dimension"),
        ([torch.ones(3)], [0.1, 0.2], ValueError, "a list of 2 for 1 arrays"),
        (torch.ones(3), [0.1], ValueError, "a list of 1 for one array"),
        (torch.ones(3).long(), 0.1, TypeError, "int64; expected float16"),
    ],
)
def test_wrong_clusters(S: Any, radius: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        sk.singular_value_clusters(S, radius)


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (64, 64), (5, 3), (1, 1), (130, 67)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_agreement_of_subspaces(shape: tuple[int, int], dtype: torch.dtype, every_isa: str) -> None:
    generator = np.random.default_rng(3)
    a, b = (sk.svd(torch.from_numpy(generator.standard_normal(shape)).to(dtype)) for _ in "ab")
    r = min(shape)
    # Clusters of every size up to twelve: through each tile of the kernel and its rest.
    sizes = generator.permutation(np.arange(1, 13))
    chains, at = [], 0
    for size in sizes:
        chains.append(list(range(at, min(at + int(size), r))))
        at += int(size)
    chains = [chain for chain in chains if chain] + [[i] for i in range(at, r)]
    clusters = torch.tensor(labels_of(chains))
    got = sk.subspace_agreement(a, b, clusters)
    want = truth.subspace_agreement(wide(a), wide(b), chains)
    # A product of two roots of roundings to dtype: half an eps each, and the root of the whole.
    np.testing.assert_allclose(got.numpy(), want, rtol=2 * torch.finfo(dtype).eps, atol=1e-15)
    single = sk.subspace_agreement(a, b, torch.arange(r))
    diagonal = sk.singular_vector_agreement(a, b)
    np.testing.assert_allclose(single, diagonal, rtol=4 * torch.finfo(dtype).eps, atol=1e-15)


def test_agreement_does_not_depend_on_the_basis_of_a_cluster(backend: str) -> None:
    A = torch.from_numpy(matrices.orthonormal(20, 20, 0))
    S = torch.tensor([3.0] * 4 + [1.0] * 16, dtype=torch.float64)
    Q = torch.from_numpy(matrices.orthonormal(4, 4, 1))
    a = sk.SVD(A, S, torch.eye(20, dtype=torch.float64))
    turned = sk.SVD(A.clone(), S, a.Vh.clone())
    turned.U[:, :4] = A[:, :4] @ Q
    turned.Vh[:4] = Q.T @ a.Vh[:4]
    # Two SVDs of one matrix: single vectors differ, the subspace is the same.
    np.testing.assert_allclose((a.U * S) @ a.Vh, (turned.U * S) @ turned.Vh, atol=1e-12)
    assert float(sk.singular_vector_agreement(a, turned)[:4].max()) < 0.99
    clusters = sk.singular_value_clusters(S, 1e-12)
    assert clusters.tolist() == [0] * 4 + [4] * 16
    np.testing.assert_allclose(sk.subspace_agreement(a, turned, clusters), 1.0, atol=1e-12)


def test_agreement_of_batches_strides_and_nan(every_isa: str) -> None:
    a, b = sk.svd(torch.randn(2, 3, 12, 9)), sk.svd(torch.randn(2, 3, 12, 9))
    clusters = torch.tensor([0, 0, 0, 0, 0, 5, 6, 6]).repeat(2, 3, 1)
    got = sk.subspace_agreement(a, b, clusters)
    one = sk.SVD(*(x[1, 2] for x in a)), sk.SVD(*(x[1, 2] for x in b))
    torch.testing.assert_close(got[1, 2], sk.subspace_agreement(*one, clusters[1, 2]))
    rows = sk.SVD(one[0].U.contiguous(), one[0].S, one[0].Vh.mT.contiguous().mT)
    torch.testing.assert_close(sk.subspace_agreement(rows, one[1], clusters[1, 2]), got[1, 2])
    a.U[1, 2, 0, 6] = float("nan")
    touched = sk.subspace_agreement(a, b, clusters)
    assert touched[1, 2].isnan().tolist() == [False] * 6 + [True] * 2
    torch.testing.assert_close(touched[1, 2, :6], got[1, 2, :6])
    single, whole = cluster_agreement_list([one], [clusters[1, 2]])
    torch.testing.assert_close(single[0][5:6], whole[0][5:6])
    assert cluster_agreement_list([], []) == ([], [])
    assert sk.subspace_agreement([], [], []) == []


def test_wrong_arguments_of_subspace_agreement() -> None:
    svd = sk.svd(torch.randn(5, 3))
    with pytest.raises(TypeError, match="dtype int32; expected int64"):
        sk.subspace_agreement(svd, svd, torch.zeros(3, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"clusters have shape \(4,\).*at most 3 entries"):
        sk.subspace_agreement(svd, svd, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="2 arrays of clusters for 1 SVDs"):
        sk.subspace_agreement([svd], [svd], [torch.arange(3)] * 2)


def test_wedin_within_the_radius() -> None:
    """A change of 2-norm ``radius`` turns vectors called identifiable by less than a right angle,
    and the subspaces of clusters by little; vectors inside a cluster can turn completely."""
    generator = np.random.default_rng(0)
    single_in_clusters = []
    for _ in range(40):
        U, V = (np.linalg.qr(generator.standard_normal((12, 12)))[0] for _ in "UV")
        S = np.array([9.0, 7.0, 7.0 - 1e-3, 5.0, 4.999, 4.998, 3, 2.5, 2, 1.5, 1, 0.5])
        A = (U * S) @ V
        E = generator.standard_normal((12, 12))
        E *= 5e-3 / np.linalg.norm(E, 2)
        a, b = (sk.SVD(*np.linalg.svd(X)) for X in (A, A + E))
        radius = 5e-3 * (1 + 1e-9)
        clusters = sk.singular_value_clusters(S, radius)
        assert clusters.tolist() == [0, 1, 1, 3, 3, 3, 6, 7, 8, 9, 10, 11]
        assert sk.subspace_agreement(a, b, clusters).min() > 1 - 1e-3
        single = sk.singular_vector_agreement(a, b)
        assert single[sk.identifiable_vectors(S, radius)].min() > 1 - 1e-3
        single_in_clusters.append(single[1:6].min())
    assert np.median(single_in_clusters) < 0.7


def unit(generator: np.random.Generator, count: int, d: int) -> Any:
    x = generator.standard_normal((count, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("d", "whole", "next_whole"),
    [
        (1, None, None),
        (2, None, None),
        (17, None, None),
        (128, None, None),
        (32, 128, None),
        (8, 32, 64),
    ],
)
def test_alignment_by_chance(d: int, whole: int | None, next_whole: int | None) -> None:
    generator = np.random.default_rng(0)
    count = 40000
    u, v = (unit(generator, count, w or d)[:, :d] for w in (whole, next_whole))
    cosines = np.abs((u * v).sum(axis=1))
    error = 5 * cosines.std() / np.sqrt(count)
    assert sk.chance_alignment(d, whole, next_whole) == pytest.approx(
        cosines.mean(), abs=error + 1e-12
    )


def test_alignment_of_two_parts_of_one_vector_by_chance() -> None:
    u = unit(np.random.default_rng(0), 40000, 24)
    cosines = np.abs((u[:, :8] * u[:, 16:]).sum(axis=1))
    error = 5 * cosines.std() / 200
    assert sk.chance_alignment(8, 24, 24, same_vector=True) == pytest.approx(
        cosines.mean(), abs=error
    )
    assert sk.chance_alignment(8, 24, 24) != pytest.approx(cosines.mean(), abs=error)
    with pytest.raises(ValueError, match="whole is 15; expected at least 16"):
        sk.chance_alignment(8, 15, same_vector=True)


def test_agreement_and_overlap_by_chance() -> None:
    generator = np.random.default_rng(0)
    values, overlaps, clusters = [], [], []
    for _ in range(300):
        a, b = (sk.SVD(*np.linalg.svd(generator.standard_normal((24, 16)), full_matrices=False))
                for _ in "ab")  # fmt: skip
        values.append(sk.singular_vector_agreement(a, b))
        overlaps.append(sk.subspace_overlap(a.U[:, :3], b.U[:, :8]))
        clusters.append(sk.subspace_agreement(a, b, np.zeros(4, dtype=np.int64))[0])
    assert np.mean(values) == pytest.approx(sk.chance_agreement(24, 16), rel=0.03)
    assert np.mean(overlaps) == pytest.approx(sk.chance_overlap(24, 3, 8), rel=0.03)
    # Jensen: the mean of a root is below the root of the mean, here by little.
    assert 0.9 * 4 / np.sqrt(24 * 16) < np.mean(clusters) < 4 / np.sqrt(24 * 16)


def test_wrong_baselines() -> None:
    with pytest.raises(ValueError, match="whole is 4; expected at least 8"):
        sk.chance_alignment(8, 4)
    with pytest.raises(ValueError, match="d is 0"):
        sk.chance_alignment(0)
    with pytest.raises(ValueError, match="k is 9; expected at most d = 8"):
        sk.chance_overlap(8, 9)
    # Far past where Gamma overflows: the asymptote.
    assert sk.chance_alignment(10**6) == pytest.approx((2 / (np.pi * 1e6)) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_prepared_agreement_follows_what_is_in_memory(dtype: torch.dtype, backend: str) -> None:
    """The public functions say the same, now and after vectors and clusters have changed."""
    torch.manual_seed(4)
    shapes, counts = [(9, 6), (4, 12), (5, 5)], [5, 4, 1]
    pairs = [(sk.svd(torch.randn(s, dtype=dtype)), sk.svd(torch.randn(s, dtype=dtype)))
             for s in shapes]  # fmt: skip
    memory = [torch.zeros(count, dtype=torch.int64) for count in counts]
    prepared = PreparedAgreement(pairs, memory)
    for radius in (0.0, 0.3, 0.6):
        clusters: list[Any] = [
            sk.singular_value_clusters(a.S[:count], radius)
            for (a, _), count in zip(pairs, counts, strict=True)
        ]
        for place, found in zip(memory, clusters, strict=True):
            place.copy_(found)
        single, whole = prepared.run()
        for i, (a, b) in enumerate(pairs):
            own = slice(sum(counts[:i]), sum(counts[: i + 1]))
            vectors: Any = sk.singular_vector_agreement(a, b, k=counts[i])
            subspaces: Any = sk.subspace_agreement(a, b, clusters[i])
            torch.testing.assert_close(single[own], vectors)
            torch.testing.assert_close(whole[own], subspaces)
            a.U.copy_(torch.linalg.qr(torch.randn_like(a.U)).Q)
