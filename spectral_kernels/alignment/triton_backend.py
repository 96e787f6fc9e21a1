"""Launchers of the Triton kernels: all pairs in one launch, all clusters in one."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from spectral_kernels.alignment import triton_cluster_kernels, triton_kernels
from spectral_kernels.runtime.memory import addresses
from spectral_kernels.runtime.numerics import DTYPE_CODES
from spectral_kernels.runtime.triton.host import (
    batch_offsets,
    launch,
    on_device,
    unrolled,
)

Pairs = list[tuple[Tensor, Tensor]]


def plan(clusters: bool) -> dict[str, Any]:
    """Return the launch parameters of the alignments.

    Vectors of 768 entries are read in 12 steps. 50 pairs of 100 vectors are 350 programs, so that
    each of 132 multiprocessors has two or three, and 31 MB of float32. Not measured.
    """
    sizes = {"CLUSTERS": clusters, "ROWS": 16, "LENGTH": 64, "DEPTH": 32, "BLOCK": 64}
    return {**sizes, "num_warps": 4, "num_stages": 1}


def cluster_plan() -> dict[str, int]:
    """Return the launch parameters of the clusters: one warp, so that a scan stays in it."""
    return {"BLOCK": 64, "num_warps": 1, "num_stages": 1}


def diagonals(pairs: Pairs, k: int) -> list[Tensor]:
    """Return |sum_a U[a, i] Vh[i, a]| for i < k, of each pair U (..., m, r), Vh (..., r', m)."""
    counts = [min(k, U.shape[-1], Vh.shape[-2]) for U, Vh in pairs]
    out = _results(pairs, counts)
    _Alignments(pairs, counts, [x.data_ptr() for x in out]).run()
    return out


def cluster_cosines(pairs: Pairs, first: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the diagonals and ||U_C^T V_C||_F / sqrt(|C|) of every index's cluster C.

    ``first`` (..., k) int64: the first index of each vector's cluster, ascending.
    """
    counts = [clusters.shape[-1] for clusters in first]
    lines, cosines = _results(pairs, counts), _results(pairs, counts)
    places = [[x.data_ptr() for x in out] for out in (lines, cosines)]
    _Alignments(pairs, counts, places[0], places[1], [x.contiguous() for x in first]).run()
    return lines, cosines


class Diagonals:
    """``diagonals`` of matrices U (m, r), Vh (r', m) of one dtype that stay where they are."""

    def __init__(self, pairs: Pairs, k: int) -> None:
        counts = [min(k, U.shape[1], Vh.shape[0]) for U, Vh in pairs]
        self.out = pairs[0][0].new_empty(sum(counts))
        self._alignments = _Alignments(pairs, counts, addresses(self.out, counts))

    def run(self) -> Tensor:
        """Return all diagonals, one after the other; the next run overwrites them."""
        self._alignments.run()
        return self.out


class ClusterCosines:
    """``cluster_cosines`` of matrices of one dtype and of clusters that stay where they are."""

    def __init__(self, pairs: Pairs, first: list[Tensor]) -> None:
        counts = [len(clusters) for clusters in first]
        self.out = pairs[0][0].new_empty(2, sum(counts))
        lines, cosines = (addresses(row, counts) for row in self.out)
        self._alignments = _Alignments(pairs, counts, lines, cosines, first)

    def run(self) -> Tensor:
        """Return (2, sum of counts): diagonals and cosines; the next run overwrites them."""
        self._alignments.run()
        return self.out


class _Alignments:
    """One launch, prepared: ``counts`` entries of each pair to the addresses ``lines``, and with
    clusters ``first`` (..., count) to ``cosines``."""

    def __init__(
        self,
        pairs: Pairs,
        counts: list[int],
        lines: list[int],
        cosines: list[int] | None = None,
        first: list[Tensor] | None = None,
    ) -> None:
        device = pairs[0][0].device
        self._owners = (pairs, first)
        self._plan = plan(first is not None)
        batches = [U.shape[:-2].numel() for U, _ in pairs]
        sums = torch.empty(
            sum(map(int.__mul__, batches, counts)), dtype=torch.float64, device=device
        )
        jobs = _jobs(pairs, counts, lines, cosines, first, sums.data_ptr())
        jobs[:, 12] = jobs[:, 8].cumsum(0) - jobs[:, 8]
        jobs[:, 13] = (jobs[:, 8] + self._plan["ROWS"] - 1) // self._plan["ROWS"]
        owner = torch.repeat_interleave(torch.arange(len(jobs)), jobs[:, 13])
        begin = jobs[:, 13].cumsum(0) - jobs[:, 13]
        tiles = torch.stack((owner, torch.arange(len(owner)) - begin[owner]), dim=1)
        self._programs = len(tiles)
        self._arguments = {
            "base_ptr": sums.view(torch.uint8),
            "jobs_ptr": on_device(jobs, device),
            "tiles_ptr": on_device(tiles, device),
            "sums_ptr": sums,
            "arrived_ptr": torch.zeros(len(jobs), dtype=torch.int32, device=device),
        }

    def run(self) -> None:
        """Compute the alignments of what is there now: one launch, nothing is allocated."""
        beside = self._arguments["sums_ptr"]
        launch(triton_kernels.alignments, self._programs, beside, **self._arguments, **self._plan)


def _jobs(
    pairs: Pairs,
    counts: list[int],
    lines: list[int],
    cosines: list[int] | None,
    first: list[Tensor] | None,
    base: int,
) -> Tensor:
    """Return the kernel's table of jobs, one a pair with batches unrolled, but for its last two."""
    jobs, steps = [], []
    for i, ((U, Vh), k) in enumerate(zip(pairs, counts, strict=True)):
        strides = [U.stride(-2), U.stride(-1), Vh.stride(-1), Vh.stride(-2)]
        clustered = [0, 0]
        if cosines is not None and first is not None:
            clustered = [cosines[i] - base, first[i].data_ptr() - base]
        begin = [U.data_ptr() - base, Vh.data_ptr() - base, DTYPE_CODES[U.dtype]]
        jobs.append([*begin, *strides, U.shape[-2], k, lines[i] - base, *clustered, 0, 0])
        size = k * U.element_size()
        steps.append([0] * 9 + [size, size, 8 * k, 0, 0])
    left = [batch_offsets(U) for U, _ in pairs]
    table = unrolled(jobs, [len(x) for x in left], steps)
    table[:, 0] += torch.cat(left)
    table[:, 1] += torch.cat([batch_offsets(Vh) for _, Vh in pairs])
    return table


class Clusters:
    """``singular_value_clusters`` of spectra that stay where they are; see the compiled one."""

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
        starts = list(itertools.accumulate(lengths, initial=0))[:-1]
        jobs = torch.tensor(list(zip(starts, lengths, unseen, map(int, follows), strict=True)))
        self._programs = len(lengths)
        self._arguments = {
            "values_ptr": values,
            "bounds_ptr": bounds,
            "jobs_ptr": on_device(jobs, values.device),
            "other_ptr": compared[0],
            "errors_ptr": compared[1],
            "first_ptr": first,
            "alone_ptr": alone.view(torch.uint8),
        }

    def run(self) -> None:
        """Find the clusters of the values as they are now."""
        beside = self._arguments["first_ptr"]
        launch(
            triton_cluster_kernels.clusters,
            self._programs,
            beside,
            **self._arguments,
            **cluster_plan(),
        )


def _results(pairs: Pairs, counts: list[int]) -> list[Tensor]:
    return [
        U.new_empty((*U.shape[:-2], count)) for (U, _), count in zip(pairs, counts, strict=True)
    ]
