"""Singular vectors that later ones are compared with (Eq. 5 of Yunis et al.)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.step.alignments import Part, by_dtype
from spectral_monitor.step.frame import Array
from spectral_monitor.step.joined_arrays import consecutive
from spectral_monitor.step.spectra import rounding
from torch import Tensor

from spectral_kernels.alignment.prepared import PreparedAgreement
from spectral_kernels.entry.results import SVD
from spectral_kernels.runtime.program.op import Entry, Follow, follow

MODES = ("init", "previous", "final")


class Recorded(NamedTuple):
    """One step of a recorded run."""

    vectors: Mapping[str, SVD]
    """Name -> leading vectors; S is empty."""
    spectra: Mapping[str, tuple[Array, Array]]
    """Name -> all singular values, and bounds of theirs."""
    source: str
    """The step and the folder, for `Reference.described`."""


Given = str | os.PathLike[str] | Sequence[SVD] | Mapping[str, SVD] | Recorded | None


class Reference:
    """Leading left and right vectors by matrix name, at most ``k`` of each.

    They take k (m + n) numbers of a matrix of m n, twice the matrix at the very most.

    Args:
        given: "init", "previous", "final", a step of a recorded run, SVDs (in the order of the
            matrices, or by name) or ``None``.
        matrices: those under watch.
        k: how many vectors to keep and compare.

    Raises:
        ValueError: anything else, or vectors of other matrices.
    """

    def __init__(self, given: Given, matrices: Sequence[Matrix], k: int) -> None:
        self._matrices = matrices
        self._k = k
        self._vectors: dict[str, SVD] = {}
        self.spectra: dict[str, tuple[Array, Array]] = {}
        """Name -> all singular values that were given, and bounds of theirs."""
        self._mode: str | None = None
        self._late_at: int | None = None
        self._source = "none"
        if isinstance(given, str | os.PathLike):
            if given not in MODES:
                raise ValueError(f"reference: expected {', '.join(MODES)}, got {given!r}")
            self._mode = str(given)
        elif isinstance(given, Recorded):
            self._mode, self._source = "given", self._take_recorded(given)
        elif given is not None:
            self._mode, count = "given", self._take(given)
            self._source = f"given SVDs of {count} matrices"
        self._compared = (
            []
            if self.wants_final
            else [i for i, m in enumerate(matrices) if self.wants_all or m.name in self._vectors]
        )

    @property
    def wants_init(self) -> bool:
        """Whether the weights as they are now are to be remembered."""
        return self._mode == "init"

    @property
    def wants_previous(self) -> bool:
        """Whether every measured step is to be remembered."""
        return self._mode == "previous"

    @property
    def wants_final(self) -> bool:
        """Whether vectors are to be saved, for a comparison when the run is over."""
        return self._mode == "final"

    @property
    def wants_all(self) -> bool:
        """Whether every matrix is compared, not only those that SVDs were given for."""
        return self._mode in MODES

    @property
    def described(self) -> str:
        """One line for `explain`."""
        late = "" if self._late_at is None else f", at step {self._late_at}, not the initial ones"
        sources = {
            "init": f"the weights when the monitor was made{late}",
            "previous": "the last measured step",
            "final": "the last recorded step, when the run is over "
            "(spectral_monitor.run.final_agreement, or a report)",
        }
        return sources.get(self._mode or "", self._source)

    def made_late(self, step: int) -> None:
        """The weights when the monitor was made were those before this step of a run."""
        self._late_at = step

    def __contains__(self, name: str) -> bool:
        return name in self._vectors

    def memory(self) -> dict[str, int]:
        """Matrix -> bytes that its vectors take, now or after the first step."""
        if self.wants_final:
            return {}
        return {
            matrix.name: (
                sum(x.nbytes for x in (self._vectors[matrix.name].U, self._vectors[matrix.name].Vh))
                if matrix.name in self._vectors
                else _size(matrix, self._k)
            )
            for matrix in (self._matrices[i] for i in self._compared)
        }

    def remember(self, svds: Sequence[SVD], finite: Sequence[bool]) -> None:
        """Keep the vectors of these SVDs; those of a matrix with NaN stay as they were."""
        for matrix, svd, ok in zip(self._matrices, svds, finite, strict=True):
            if ok:
                kept, leading = self._place(matrix.name, svd), self.leading(svd)
                kept.U.copy_(leading.U)
                kept.Vh.copy_(leading.Vh)

    def following(self, svds: Sequence[SVD], codes: Sequence[Tensor]) -> list[Entry]:
        """An entry that keeps the vectors of every step, where the code of a matrix is not below 0;
        none where the reference stays."""
        if not self.wants_previous:
            return []
        pairs = []
        for matrix, svd, code in zip(self._matrices, svds, codes, strict=True):
            kept, leading = self._place(matrix.name, svd), self.leading(svd)
            pairs += [Follow(leading.U, kept.U, code), Follow(leading.Vh, kept.Vh, code)]
        return [follow(pairs)]

    def leading(self, svd: SVD) -> SVD:
        """The vectors that take part, views; S is empty."""
        return SVD(svd.U[:, : self._k], svd.S.new_empty(0), svd.Vh[: self._k])

    def prepared(self, svds: Sequence[SVD], clusters: Sequence[Tensor]) -> list[Part]:
        """Agreement of single vectors, and of the subspaces of clusters, of SVDs that stay in
        this memory: |u_i . u'_i| |v_i . v'_i|, and `spectral_kernels.subspace_agreement`, the two
        rows of each part. NaN where no reference is known yet.

        Args:
            svds: of all matrices.
            clusters: of all matrices, from `spectral_kernels.singular_value_clusters`.
        """
        groups = by_dtype(svds[i].U.dtype for i in self._compared)
        return [
            self._part([self._compared[j] for j in members], svds, clusters)
            for members in groups.values()
        ]

    def _part(
        self, members: Sequence[int], svds: Sequence[SVD], clusters: Sequence[Tensor]
    ) -> Part:
        names = [self._matrices[i].name for i in members]
        pairs = [(svds[i], self._place(n, svds[i])) for i, n in zip(members, names, strict=True)]
        counts = [min(self._k, len(a.Vh), len(b.Vh)) for a, b in pairs]
        first = [clusters[i][:count] for i, count in zip(members, counts, strict=True)]
        agreement = PreparedAgreement(pairs, first)
        return Part([agreement], agreement.out, consecutive(names, counts))

    def _place(self, name: str, svd: SVD) -> SVD:
        """The reference of a matrix, in the dtype and on the device of its present vectors; NaN
        until there is one."""
        kept = self._vectors.get(name)
        if kept is None:
            leading = self.leading(svd)
            U, Vh = (torch.full_like(x, torch.nan) for x in (leading.U, leading.Vh))
            kept = self._vectors[name] = SVD(U, svd.S.new_empty(0), Vh)
        if kept.U.dtype != svd.U.dtype or kept.U.device != svd.U.device:
            kept = self._vectors[name] = SVD(kept.U.to(svd.U), kept.S, kept.Vh.to(svd.Vh))
        return kept

    def state(self) -> dict[str, Any]:
        """The vectors and where they are from, for a monitor's state."""
        remembered = {name: svd for name, svd in self._vectors.items() if _is_known(svd)}
        return {
            "mode": self._mode,
            "late_at": self._late_at,
            "vectors": {name: [svd.U.clone(), svd.Vh.clone()] for name, svd in remembered.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the vectors of a state."""
        if state["mode"] != self._mode:
            raise ValueError(
                f"state: its reference is {state['mode']!r}, this monitor's is {self._mode!r}"
            )
        shapes = {matrix.name: matrix.shape for matrix in self._matrices}
        loaded = {}
        for name, (U, Vh) in state["vectors"].items():
            if name not in shapes or (U.shape[0], Vh.shape[1]) != shapes[name]:
                raise ValueError(
                    f"state: reference vectors of {name!r} have the sides "
                    f"{(U.shape[0], Vh.shape[1])}, the matrix is {shapes.get(name, 'unknown')}"
                )
            loaded[name] = SVD(U.clone(), U.new_empty(0), Vh.clone())
        self._vectors = loaded
        self._late_at = state.get("late_at")

    def _take(self, given: Sequence[SVD] | Mapping[str, SVD]) -> int:
        names = [matrix.name for matrix in self._matrices]
        if isinstance(given, Mapping):
            unknown = [name for name in given if name not in names]
            if unknown:
                raise ValueError(f"reference: no matrix is called {', '.join(map(repr, unknown))}")
            entries = dict(given)
        else:
            if len(given) != len(names):
                raise ValueError(
                    f"reference: {len(given)} SVDs for {len(names)} matrices: {', '.join(names)}"
                )
            entries = dict(zip(names, given, strict=True))
        shapes = {matrix.name: matrix.shape for matrix in self._matrices}
        for name, svd in entries.items():
            U, Vh = torch.as_tensor(svd.U).detach(), torch.as_tensor(svd.Vh).detach()
            if U.dim() != 2 or Vh.dim() != 2 or (U.shape[0], Vh.shape[1]) != shapes[name]:
                raise ValueError(
                    f"reference: the SVD of {name!r} has U {tuple(U.shape)} and Vh "
                    f"{tuple(Vh.shape)}, the matrix is {shapes[name]}"
                )
            self._vectors[name] = self.leading(SVD(U, U.new_empty(0), Vh))
            self.spectra[name] = _spectrum(svd.S, name, shapes[name], min(U.shape[1], Vh.shape[0]))
        return len(entries)

    def _take_recorded(self, given: Recorded) -> str:
        here = {matrix.name for matrix in self._matrices}
        if not here & set(given.vectors):
            raise ValueError(
                f"reference: {given.source} has vectors of the matrices "
                f"{', '.join(given.vectors)}; expected some of {', '.join(sorted(here))}"
            )
        count = self._take(
            {
                name: svd._replace(S=torch.from_numpy(given.spectra[name][0]))
                for name, svd in given.vectors.items()
                if name in here and name in given.spectra
            }
        )
        self.spectra = {name: given.spectra[name] for name in self.spectra}
        return f"{given.source}, {count} matrices"


def _spectrum(S: Any, name: str, shape: tuple[int, ...], count: int) -> tuple[Array, Array]:
    """Singular values as given, and bounds: the rounding that exact solvers are tested against."""
    values = torch.as_tensor(S).detach()
    if values.dim() != 1 or not len(values):
        raise ValueError(
            f"reference: the SVD of {name!r} has singular values of shape {tuple(values.shape)}; "
            f"expected ({count},): which vectors can be told apart depends on them"
        )
    (bounds,) = rounding([values], [shape]).bounds
    return values.double().cpu().numpy(), bounds.cpu().numpy()


def _size(matrix: Matrix, k: int) -> int:
    return matrix.result_bytes * min(k, matrix.rank) * sum(matrix.shape)


def _is_known(svd: SVD) -> bool:
    return not bool(svd.Vh[:1].isnan().any())
