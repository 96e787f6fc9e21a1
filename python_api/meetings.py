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
        self._prepared: PreparedDiagonals | None = None

    def alignment(self, svds: Sequence[SVD]) -> Mapping[tuple[str, str], Array]:
        """(name, name of the next layer) -> diagonal of |U^T V'|, of the step's SVDs."""
        if not self._same(svds):
            views = self._views(svds)
            self._svds, self._prepared = (), None
            # A copy in another dtype would be that of this step for ever.
            one = len({x.dtype for pair in views for x in pair}) == 1
            if not self._in_place or not one:
                diagonals = alignment_diagonals_list([_one_dtype(*pair) for pair in views], self._k)
                return dict(zip(self._keys, to_arrays(diagonals), strict=True))
            self._svds, self._prepared = svds, PreparedDiagonals(views, self._k)
            self._slices = consecutive(self._keys, self._prepared.counts)
        assert self._prepared is not None
        return ArrayViews(self._prepared.run().to("cpu", copy=True).numpy(), self._slices)

    def _same(self, svds: Sequence[SVD]) -> bool:
        return svds is self._svds

    def _views(self, svds: Sequence[SVD]) -> list[tuple[Tensor, Tensor]]:
        return [
            (pair.first.basis(svds[i]), pair.second.rows(svds[j]))
            for pair, (i, j) in zip(self._pairs, self._sides, strict=True)
        ]


def _one_dtype(U: Tensor, Vh: Tensor) -> tuple[Tensor, Tensor]:
    if U.dtype == Vh.dtype:
        return U, Vh
    return U.double(), Vh.double()
