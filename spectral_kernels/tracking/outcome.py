"""What an update says of matrices, from what was computed of them or of their cores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from spectral_kernels.entry.factors import Matrices
from spectral_kernels.entry.results import SVD
from spectral_kernels.tracking.results import Tracked


class Outcome(NamedTuple):
    """Factors, identities and bounds of whole matrices, an entry for each.

    ``residuals`` and ``frobenius_norms`` are those of leading triplets, and empty for whole
    spectra. ``core_errors``, by place: what a core adds to the bounds, in the 2-norm.
    """

    svds: list[SVD]
    identities: list[Tensor]
    bounds: list[Tensor]
    error_norms: list[Tensor]
    residuals: list[Tensor]
    frobenius_norms: list[Tensor]
    core_errors: dict[int, Tensor]

    @staticmethod
    def of(results: Sequence[Tracked], matrices: Matrices, last: Outcome | None) -> Outcome:
        """Return the outcome of an update.

        Args:
            results: of ``matrices.tensors``.
            matrices: those of the update.
            last: the outcome before it, whose lifted vectors are overwritten.
        """
        values = [entry.svd.S for entry in results]
        residuals = [x.residuals for x in results if x.residuals is not None]
        norms = [x.frobenius_norms for x in results if x.frobenius_norms is not None]
        return Outcome(
            matrices.lifted([entry.svd for entry in results], None if last is None else last.svds),
            [entry.identities for entry in results],
            matrices.bounded([entry.bounds for entry in results], values),
            matrices.bounded([entry.error_norms for entry in results], values),
            # A W_v - W_u C has W_v^T W_v - I, of which singular values feel a half.
            matrices.bounded(residuals, values, share=2.0) if residuals else [],
            matrices.whole(norms) if norms else [],
            {i: core.error for i, core in matrices.cores.items()},
        )

    def overwrite(self, outcome: Outcome) -> bool:
        """Take over what another outcome says of decomposed matrices, where it lay before.

        Return False, with nothing done, where their SVDs are not in the same place in both.
        """
        if any(self.svds[i] is not outcome.svds[i] for i in outcome.core_errors):
            return False
        for mine, others in zip(self[2:6], outcome[2:6], strict=True):
            for i in outcome.core_errors if mine else ():
                mine[i].copy_(others[i])
        self.core_errors.update(outcome.core_errors)
        return True
