"""The alignments of a step: which parts of which singular vectors meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from python_api.frame import Array
from python_api.matrices import Matrix
from python_api.pairs import Pair
from python_api.rows import to_arrays
from python_api.views import ArrayViews, consecutive
from spectral_kernels.alignment.op import alignment_diagonals_list
from spectral_kernels.alignment.prepared import PreparedDiagonals
from spectral_kernels.results import SVD

__all__ = ["Meetings"]


class Meetings:
    """Alignment diagonals of all pairs of layers.

    Args:
        pairs: those under alignment.
        matrices: those under watch.
        k: how many vectors of each take part.
        in_place: whether the SVDs are in the same tensors at every step, as a tracker's are, and
            then come in the same list: what can be prepared is prepared once.
    """

    def __init__(
        self, pairs: Sequence[Pair], matrices: Sequence[Matrix], k: int, *, in_place: bool
    ) -> None:
        index = {matrix.name: i for i, matrix in enumerate(matrices)}
        self._sides = [(index[p.first.matrix], index[p.second.matrix]) for p in pairs]
        self._pairs = pairs
        self._keys = [pair.key for pair in pairs]
        self._k = k
        self._in_place = in_place
        self._svds: Sequence[SVD] = ()
        self._prepared: tuple[PreparedDiagonals, dict[tuple[str, str], slice]] | None = None

    def alignment(self, svds: Sequence[SVD]) -> Mapping[tuple[str, str], Array]:
        """(name, name of the next layer) -> diagonal of |U^T V'|, of the step's SVDs."""
        if svds is not self._svds:
            self._prepared = self.prepared(svds) if self._in_place else None
            if self._prepared is None:
                self._svds = ()
                pairs = [_one_dtype(*pair) for pair in self._views(svds)]
                diagonals = alignment_diagonals_list(pairs, self._k)
                return dict(zip(self._keys, to_arrays(diagonals), strict=True))
            self._svds = svds
        assert self._prepared is not None
        block, places = self._prepared
        return ArrayViews(block.run().to("cpu", copy=True).numpy(), places)

    def prepared(
        self, svds: Sequence[SVD]
    ) -> tuple[PreparedDiagonals, dict[tuple[str, str], slice]] | None:
        """All diagonals of SVDs in these places, and where each is; None where there is no pair,
        or where dtypes differ: a copy in another one would be that of this step for ever.
        """
        views = self._views(svds)
        if len({x.dtype for pair in views for x in pair}) != 1:
            return None
        diagonals = PreparedDiagonals(views, self._k)
        return diagonals, consecutive(self._keys, diagonals.counts)

    def _views(self, svds: Sequence[SVD]) -> list[tuple[Tensor, Tensor]]:
        return [
            (pair.first.basis(svds[i]), pair.second.rows(svds[j]))
            for pair, (i, j) in zip(self._pairs, self._sides, strict=True)
        ]


def _one_dtype(U: Tensor, Vh: Tensor) -> tuple[Tensor, Tensor]:
    if U.dtype == Vh.dtype:
        return U, Vh
    return U.double(), Vh.double()
