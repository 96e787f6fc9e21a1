"""What an update gives back, and the updates that do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, overload, runtime_checkable

import torch
from torch import Tensor

from spectral_kernels.entry.results import SVD
from spectral_kernels.runtime.numerics import result_dtype

NOT_FINITE = "not finite"
"""What an update does to a matrix with NaN or Inf: nothing."""

NOT_FINITE_CODE = -1

SOLVED = 4
"""The code of a new solution. 0: the last vectors still hold; 1 to 3: so many rotations, of leading
triplets so many iterations."""


class Work(Sequence[str]):
    """What an update did to each matrix, read from where it wrote that when it is looked at.

    Args:
        codes: (B,) whole numbers, -1 for "not finite", else the index in ``names``.
        lost: (B,) bool, the matrices whose bounds exceed the tolerance.
        names: what updates do, by code.
    """

    def __init__(self, codes: Tensor, lost: Tensor, names: Sequence[str]) -> None:
        self.codes, self.lost, self.names = codes, lost, names

    @staticmethod
    def of(codes: Sequence[int], names: Sequence[str], device: torch.device) -> Work:
        """Return the work of an update that solves what it loses, so that nothing is lost."""
        there = torch.tensor(codes, dtype=torch.int64, device=device)
        return Work(there, torch.zeros_like(there, dtype=torch.bool), names)

    def _read(self) -> list[str]:
        # Not kept: a replayed graph overwrites the codes without a word to Python.
        codes = self.codes.tolist()
        return [NOT_FINITE if code < 0 else self.names[int(code)] for code in codes]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._read()[index]


class Tracked(NamedTuple):
    """One update of a batch (B, m, n), k of whose triplets are followed.

    Factors; bounds (B, k) float64 of each value and (B,) of the 2-norm of all their errors;
    identities (B, k) int64; what was done to each matrix; and of leading triplets residuals (B, k)
    float64 and the Frobenius norms (B,) float64 of the whole matrices.
    """

    svd: SVD
    bounds: Tensor
    error_norms: Tensor
    identities: Tensor
    work: Work
    residuals: Tensor | None = None
    frobenius_norms: Tensor | None = None

    @staticmethod
    def nothing(A: Tensor, k: int, work: str, names: Sequence[str], *, leading: bool) -> Tracked:
        """Return the result of a batch (..., m, n) without entries, by the shape it has."""
        *batch, m, n = A.shape
        dtype = result_dtype(A.dtype)
        svd = SVD(
            A.new_zeros((*batch, k, m), dtype=dtype).mT,
            A.new_zeros((*batch, k), dtype=dtype),
            A.new_zeros((*batch, k, n), dtype=dtype),
        )
        bounds = A.new_zeros((*batch, k), dtype=torch.float64)
        norms = A.new_zeros(tuple(batch), dtype=torch.float64)
        residuals, sizes = (bounds.clone(), norms.clone()) if leading else (None, None)
        done = Work.of([names.index(work)] * math.prod(batch), names, A.device)
        return Tracked(svd, bounds, norms, bounds.to(torch.int64), done, residuals, sizes)

    def shaped(self, *batch: int) -> Tracked:
        """Return views with these batch dimensions."""
        return self._each(lambda x: x.view((*batch, *x.shape[1:])), self.work)

    def copied(self) -> Tracked:
        """Return results that the next update leaves alone."""
        codes, lost, names = self.work.codes, self.work.lost, self.work.names
        return self._each(Tensor.clone, Work(codes.clone(), lost.clone(), names))

    def _each(self, function: Callable[[Tensor], Tensor], work: Work) -> Tracked:
        svd, bounds, norms, identities, _, residuals, sizes = self
        return Tracked(
            SVD(*map(function, svd)),
            function(bounds),
            function(norms),
            function(identities),
            work,
            None if residuals is None else function(residuals),
            None if sizes is None else function(sizes),
        )


class Updates(Protocol):
    """Prepared updates of batches (B, m, n), none of them empty."""

    def run(self) -> list[Tracked]:
        """Return the triplets of each batch; its state is overwritten with the new one."""
        ...


@runtime_checkable
class LateUpdates(Updates, Protocol):
    """Updates that do not wait for their own certificates, so that matrices can be lost."""

    @property
    def lost(self) -> Tensor:
        """(sum of B,) bool on the device: see `Work`."""
        ...

    def resolve(self, which: Sequence[Sequence[int]]) -> int:
        """Solve matrices anew, as they are now, for the next run; indices for each batch.

        Returns:
            How many of them count as solved; 0 where the device itself counts.
        """
        ...

    def rebind(self, matrices: list[Tensor]) -> None:
        """Read from other memory from now on: batches of the same layouts."""
        ...
