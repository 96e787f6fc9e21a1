"""Adapter to the compiled kernels: the alignments of all pairs in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_kernels import _C
from spectral_kernels.alignment.prepared import ComparedSpectra
from spectral_kernels.runtime.memory import addresses, matrix_argument
from spectral_kernels.runtime.numerics import DTYPE_CODES


class Alignments:
    """How the vectors of pairs of matrices line up; a run reads what their memory holds then.

    Args:
        pairs: U (..., m, r), Vh (..., r', m) of one dtype.
        lines: (..., count) results |sum_a U[a, i] Vh[i, a]|, i < count, of each pair; contiguous,
            of its dtype, and zeros where m is 0.
        cosines: (..., count) results ||U_C^T V_C||_F / sqrt(|C|) of every index's cluster C.
        first: (..., count) int64, contiguous: the first index of each vector's cluster, ascending.
            Without clusters both are empty.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Tensor, Tensor]],
        lines: Sequence[Tensor],
        cosines: Sequence[Tensor],
        first: Sequence[Tensor],
    ) -> None:
        self._owners = [*lines, *cosines, *first]
        jobs: list[tuple[int, ...]] = []
        for i, ((U, Vh), line) in enumerate(zip(pairs, lines, strict=True)):
            (u, code, batch, length, _, u_step, *left), U = matrix_argument(U)
            (v, _, _, _, _, v_step, *right), Vh = matrix_argument(Vh)
            self._owners += [U, Vh]
            count, size = line.shape[-1], line.element_size()
            begins = [u, v, line.data_ptr(), 0, 0]
            steps = [u_step * size, v_step * size, count * size, 0, 0]
            if first:
                begins[3:] = first[i].data_ptr(), cosines[i].data_ptr()
                steps[3:] = 8 * count, count * size
            # Batches as pointer arithmetic: slicing costs a microsecond per tensor.
            for b in range(batch if count and length else 0):
                at_u, at_v, *out = (x + b * step for x, step in zip(begins, steps, strict=True))
                jobs.append((at_u, code, *left, at_v, *right, length, count, *out))
        self.calls = [("alignment_diagonals", jobs)]

    def run(self) -> None:
        """Fill ``lines`` and ``cosines``."""
        _C.alignment_diagonals(self.calls[0][1], torch.get_num_threads())


class Clusters:
    """``singular_value_clusters`` of spectra that stay where they are, on the CPU."""

    def __init__(self, spectra: ComparedSpectra) -> None:
        values, bounds, compared, lengths, unseen, follows, first, alone = spectra
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
