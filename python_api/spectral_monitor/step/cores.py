"""Decomposed matrices as solvers see them: small, dense, in the same place at every step.

A matrix that is kept as U Sigma Vh is never formed. Solvers get its core instead, a matrix of at
most k x k with the same singular values (`spectral_kernels.entry.core`), and solve it as any
other; the vectors that come of it, times orthonormal bases of U and Vh, are those of the product.
What is behind a solver sees vectors of the full sides and bounds that include the core's error.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from spectral_monitor.model.matrix import Kept, Matrix
from spectral_monitor.step.rows import Spectra
from torch import Tensor

from spectral_kernels.entry.core.op import Core, cores, lift
from spectral_kernels.entry.core.overflow import scaled_down, scaled_up
from spectral_kernels.entry.results import SVD, Decomposed

__all__ = ["Cores"]


class Cores:
    """Puts cores in the place of decomposed matrices, and takes results back.

    A step calls `take`, `rescale`, then `lift` and `widen`. Matrices that are not decomposed pass
    through, and where none is, nothing is done.

    Args:
        matrices: those of every step, in order.
        vectors: how many of each are lifted at most.
        in_place: whether all results are to be in the same memory at every step, for what is
            behind a tracker.
    """

    def __init__(self, matrices: Sequence[Matrix], vectors: int, *, in_place: bool = False) -> None:
        self._matrices, self._count, self._in_place = matrices, vectors, in_place
        self._members = [i for i, matrix in enumerate(matrices) if matrix.is_decomposed]
        self._wanted = [True] * len(matrices)
        self._places: dict[int, Tensor] = {}
        self._cores: dict[int, Core] = {}
        self._exponents: dict[int, Tensor] = {}
        self._errors: Tensor | None = None
        self._solved: Sequence[SVD] = ()
        self._lifted: list[SVD] = []
        self._parts: dict[int, SVD] = {}
        self._narrow: Spectra | None = None
        self._wide = Spectra([], [], [])

    def take(self, read: Sequence[Kept], vectors: Sequence[bool]) -> list[Tensor]:
        """What is to be solved: (m, n) matrices as they are, and cores.

        Args:
            read: all matrices, as `Matrix.read` gives them.
            vectors: of which `lift` will be asked for vectors.
        """
        factors = [x for x in read if isinstance(x, Decomposed)]
        if not factors:
            return [x for x in read if isinstance(x, Tensor)]
        wanted = [vectors[i] for i in self._members]
        found = cores(factors, vectors=wanted)
        if list(vectors) != self._wanted:
            self._wanted, self._solved = list(vectors), ()
        self._cores = dict(zip(self._members, found, strict=True))
        self._fit(dict(zip(self._members, factors, strict=True)), vectors)
        self._note_errors([core.error for core in self._cores.values()])
        return [self._core(i) if isinstance(x, Decomposed) else x for i, x in enumerate(read)]

    def _fit(self, factors: dict[int, Decomposed], vectors: Sequence[bool]) -> None:
        """Have cores beyond the range of their type over powers of two, with infinite errors."""
        self._exponents = {}
        for i, x in factors.items():
            smaller = scaled_down(x, self._cores[i])
            if smaller is not None:
                (core,) = cores([smaller[0]], vectors=vectors[i])
                self._exponents[i] = smaller[1]
                self._cores[i] = core._replace(error=torch.full_like(core.error, float("inf")))

    def rescale(self, svds: Sequence[SVD]) -> None:
        """Make the values of cores that were taken over powers of two those of the matrices, in
        place: infinite where they are beyond the range, which `step.rows` solves anew."""
        for i, exponent in self._exponents.items():
            svds[i].S.copy_(scaled_up(svds[i].S, exponent))

    def _core(self, i: int) -> Tensor:
        now = self._cores[i].matrix
        if not self._in_place:
            return now
        place = self._places.get(i)
        if place is None or place.dtype != now.dtype or place.device != now.device:
            place = self._places[i] = torch.empty_like(now)
        return place.copy_(now)

    def _note_errors(self, found: list[Tensor]) -> None:
        device = found[0].device
        if self._errors is None or self._errors.device != device:
            self._errors = torch.zeros(len(self._matrices), dtype=torch.float64, device=device)
            self._index = torch.tensor(self._members, device=device)
        self._errors.index_copy_(0, self._index, torch.stack(found))

    def errors(self) -> list[float]:
        """For each matrix, a bound of the 2-norm of the differences between the singular values of
        what was taken and its own. Waits for a GPU."""
        return [0.0] * len(self._matrices) if self._errors is None else self._errors.tolist()

    def lift(self, svds: list[SVD]) -> list[SVD]:
        """The SVDs of the matrices, from those of what was taken.

        U and Vh of at most so many columns and rows as asked for, empty where `take` was told that
        there would be no need; S as it is. In place, the same list comes back for the same list,
        with the vectors in the same memory.
        """
        # The bases are of the size of the factors: they are not kept.
        found, self._cores = self._cores, {}
        if not found:
            return svds
        if not self._in_place:
            parts = {i: self._part(i, svds[i]) for i in found}
            lifted = {i: lift(core, parts[i]) if parts[i].Vh.numel() else parts[i]
                      for i, core in found.items()}  # fmt: skip
            return [lifted.get(i, svd) for i, svd in enumerate(svds)]
        if svds is not self._solved:
            self._prepare(svds)
        for i, part in self._parts.items():
            lift(found[i], part, out=self._lifted[i])
        return self._lifted

    def _part(self, i: int, svd: SVD) -> SVD:
        """What is lifted of a core's vectors, none if they are not needed."""
        if self._wanted[i] and svd.Vh.numel():
            return SVD(svd.U[:, : self._count], svd.S, svd.Vh[: self._count])
        nothing = svd.Vh.new_empty((0, 0))
        return SVD(nothing, svd.S, nothing)

    def _prepare(self, svds: list[SVD]) -> None:
        self._solved, self._lifted, self._parts = svds, list(svds), {}
        for i in self._members:
            part = self._lifted[i] = self._part(i, svds[i])
            if part.Vh.numel():
                (m, n), t = self._matrices[i].shape, len(part.Vh)
                # A side that is no longer than k is its own basis: its vectors are the core's.
                U = part.U if len(part.U) == m else part.U.new_empty((t, m)).mT
                Vh = part.Vh if part.Vh.shape[1] == n else part.Vh.new_empty((t, n))
                self._parts[i], self._lifted[i] = part, SVD(U, part.S, Vh)

    def widen(self, spectra: Spectra) -> Spectra:
        """Bounds of the singular values of the matrices, from those of what was taken.

        For spectra of all matrices; in place, the same result, overwritten, for the same ones.
        """
        if self._errors is None:
            return spectra
        if not self._in_place:
            errors = self._errors.unbind()
            return Spectra(
                spectra.values,
                [b + error for b, error in zip(spectra.bounds, errors, strict=True)],
                [norm + error for norm, error in zip(spectra.norms, errors, strict=True)],
            )
        if spectra is not self._narrow:
            lengths = [len(S) for S in spectra.values]
            index = torch.arange(len(lengths), device=self._errors.device)
            self._owner = index.repeat_interleave(torch.tensor(lengths, device=index.device))
            self._bounds = torch.cat(spectra.bounds)
            self._norms = torch.stack(spectra.norms)
            self._wide = Spectra(
                spectra.values, list(torch.split(self._bounds, lengths)), list(self._norms.unbind())
            )
            self._narrow = spectra
        torch.cat(spectra.bounds, out=self._bounds)
        torch.stack(spectra.norms, out=self._norms)
        self._bounds += self._errors[self._owner]
        self._norms += self._errors
        return self._wide

    def memory(self) -> dict[str, int]:
        """Matrix -> bytes of its core and of its lifted vectors."""
        return {self._matrices[i].name: self._bytes(i) for i in self._members}

    def _bytes(self, i: int) -> int:
        matrix = self._matrices[i]
        (m, n), (p, q) = matrix.shape, matrix.core
        lifted = (m if p < m else 0) + (n if q < n else 0)
        vectors = min(self._count, matrix.rank) if self._wanted[i] else 0
        return matrix.result_bytes * (p * q + vectors * lifted)
