"""Adapter to the compiled kernels: the diagonals of all pairs in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels import _C
from spectral_kernels.runtime.memory import addresses
from spectral_kernels.runtime.numerics import DTYPE_CODES

_Job = tuple[int, ...]


def diagonals(pairs: list[tuple[Tensor, Tensor]], k: int) -> list[Tensor]:
    """Return |sum_a U[a, i] Vh[i, a]| for i < k, of each pair U (..., m, r), Vh (..., r', m)."""
    counts = [min(k, U.shape[-1], Vh.shape[-2]) for U, Vh in pairs]
    results, _ = _run(pairs, counts, None)
    return results


def cluster_cosines(
    pairs: list[tuple[Tensor, Tensor]], first: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the diagonals and ||U_C^T V_C||_F / sqrt(|C|) of every index's cluster C.

    ``first`` (..., k) int64: the first index of each vector's cluster, ascending.
    """
    return _run(pairs, [clusters.shape[-1] for clusters in first], first)


def _run(
    pairs: list[tuple[Tensor, Tensor]], counts: list[int], first: list[Tensor] | None
) -> tuple[list[Tensor], list[Tensor]]:
    results: list[Tensor] = []
    cosines: list[Tensor] = []
    jobs: list[_Job] = []
    owners: list[Tensor] = []
    for i, ((U, Vh), count) in enumerate(zip(pairs, counts, strict=True)):
        *batch, length, _ = U.shape
        if length == 0 or U.numel() == 0 or Vh.numel() == 0:
            results.append(torch.zeros((*batch, count), dtype=U.dtype))
            cosines.append(torch.zeros((*batch, count), dtype=U.dtype))
            continue
        out = torch.empty(*batch, count, dtype=U.dtype)
        results.append(out)
        clusters = (0, 0)
        if first is not None:
            cosine, indices = torch.empty_like(out), first[i].contiguous()
            cosines.append(cosine)
            owners.append(indices)
            clusters = (indices.data_ptr(), cosine.data_ptr())
        code = DTYPE_CODES[U.dtype]
        if not batch:
            (u_row, u_column), (v_row, v_column) = U.stride(), Vh.stride()
            left = (U.data_ptr(), code, u_row, u_column)
            right = (Vh.data_ptr(), v_row, v_column)
            jobs.append((*left, *right, length, count, out.data_ptr(), *clusters))
            continue
        # Batches as pointer arithmetic: slicing costs a microsecond per tensor.
        u, v, size = U.flatten(0, -3), Vh.flatten(0, -3), U.element_size()
        owners += [u, v]
        u_step, u_row, u_column = u.stride()
        v_step, v_row, v_column = v.stride()
        for b in range(u.shape[0]):
            left = (u.data_ptr() + b * u_step * size, code, u_row, u_column)
            right = (v.data_ptr() + b * v_step * size, v_row, v_column)
            at = b * count
            inside = (clusters[0] + 8 * at, clusters[1] + at * size) if clusters[1] else (0, 0)
            jobs.append((*left, *right, length, count, out.data_ptr() + at * size, *inside))
    if jobs:
        _C.alignment_diagonals(jobs, torch.get_num_threads())
    return results, cosines


class Diagonals:
    """``diagonals`` of matrices U (m, r), Vh (r', m) of one dtype that stay where they are."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]], k: int) -> None:
        counts = [min(k, U.shape[1], Vh.shape[0]) for U, Vh in pairs]
        self._pairs = pairs
        self.out = torch.zeros(sum(counts), dtype=pairs[0][0].dtype)
        places = addresses(self.out, counts)
        jobs = [
            (*_matrices(U, Vh), count, place, 0, 0)
            for (U, Vh), count, place in zip(pairs, counts, places, strict=True)
            if count and len(U)
        ]
        self.calls = [("alignment_diagonals", jobs)]

    def run(self) -> Tensor:
        """Return ``out``, all diagonals one after the other; the next run overwrites them."""
        _C.alignment_diagonals(self.calls[0][1], torch.get_num_threads())
        return self.out


class ClusterCosines:
    """``cluster_cosines`` of matrices of one dtype and of clusters that stay where they are."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]], first: list[Tensor]) -> None:
        counts = [len(clusters) for clusters in first]
        self._owners = (pairs, first)
        self.out = torch.zeros(2, sum(counts), dtype=pairs[0][0].dtype)
        places, cosines = (addresses(row, counts) for row in self.out)
        jobs = [
            (*_matrices(U, Vh), count, line, clusters.data_ptr(), cosine)
            for (U, Vh), clusters, count, line, cosine in zip(
                pairs, first, counts, places, cosines, strict=True
            )
            if count and len(U)
        ]
        self.calls = [("alignment_diagonals", jobs)]

    def run(self) -> Tensor:
        """Return ``out`` (2, sum of counts): diagonals and cosines; the next run overwrites it."""
        _C.alignment_diagonals(self.calls[0][1], torch.get_num_threads())
        return self.out


class Clusters:
    """``singular_value_clusters`` of spectra that stay where they are, on the CPU.

    Args:
        values, bounds: (total,) all spectra one after the other, and of their errors.
        compared: (2, total) the values to compare with, NaN for none, and bounds of theirs.
        lengths: of each spectrum.
        unseen: of each, the index from which on values are not known; -1 where all are.
        follows: of each, whether a run leaves its values and bounds to compare the next ones with.
        first, alone: (total,) results, int64 and bool: the index of the first value of each
            value's cluster, from the start of its spectrum, and whether it is identifiable.
    """

    def __init__(
        self,
        values: Tensor,
        bounds: Tensor,
        compared: Tensor,
        lengths: list[int],
        unseen: list[int],
        follows: list[bool],
        first: Tensor,
        alone: Tensor,
    ) -> None:
        self._owners = (values, bounds, *compared, first, alone)
        code = DTYPE_CODES[values.dtype]
        own = [addresses(x, lengths) for x in self._owners]
        jobs = [
            (s, code, b, other, error, r, beyond, int(follow), f, a)
            for s, b, other, error, f, a, r, beyond, follow in zip(
                *own, lengths, unseen, follows, strict=True
            )
        ]
        self.calls = [("clusters", jobs)]

    def run(self) -> None:
        """Find the clusters of the values as they are now."""
        _C.clusters(self.calls[0][1])


def _matrices(U: Tensor, Vh: Tensor) -> tuple[int, ...]:
    """Return the eight numbers of a job that say what is multiplied."""
    return (U.data_ptr(), DTYPE_CODES[U.dtype], *U.stride(), Vh.data_ptr(), *Vh.stride(), len(U))
