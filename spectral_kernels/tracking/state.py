"""What a tracker carries from step to step, and what one update gives back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, overload, runtime_checkable

import torch
from torch import Tensor

from spectral_kernels.entry.results import SVD

WORK = ("kept", "rotated", "rotated twice", "rotated three times", "solved")
"""What an update did to a matrix, by the codes 0 to 4 of the kernels."""

ROTATIONS = 3
"""The most rotations before a matrix is solved anew."""

SOLVED = ROTATIONS + 1

NOT_FINITE = "not finite"
"""What it did to a matrix with NaN or Inf: nothing."""

NOT_FINITE_CODE = -1

# What float32 rounding may take of the tolerance, for a flat spectrum, where it is most.
_ROUNDING_SHARE = 0.6


@dataclass
class State:
    """The vectors of a batch of B matrices (m, n), r = min(m, n).

    ``vectors`` (B, r, r): column j of each is a singular vector on the short side (right for
    m >= n, left otherwise), in an order of its own; a column stays with its vector while the
    spectrum is sorted anew. float32 where the sweeps are, else float64. ``drift`` (B,) float64:
    a bound of ||V^T V - I||_2. ``names`` (B, r + 1) int64: the identity of every column, and the
    next one to give. ``warm`` says for each matrix whether there are vectors yet. All but the
    vectors is on the CPU, except while updates on a GPU hold it there: then ``late_resolves`` ()
    int64 counts there how often they solved one of the matrices anew, and ``warm`` is not kept.
    """

    vectors: Tensor
    drift: Tensor
    names: Tensor
    warm: list[bool]
    late_resolves: Tensor | None = None

    @staticmethod
    def cold(count: int, r: int, dtype: torch.dtype, device: torch.device) -> State:
        """Room for the vectors of so many matrices."""
        return State(
            torch.zeros((count, r, r), dtype=dtype, device=device),
            torch.zeros(count, dtype=torch.float64),
            torch.zeros((count, r + 1), dtype=torch.int64),
            [False] * count,
        )

    def started(self) -> list[bool]:
        """Return for each matrix whether there are vectors yet, asking a GPU where it must."""
        if self.late_resolves is None:
            return list(self.warm)
        # The first names are given with the first vectors.
        return [bool(next_name > 0) for next_name in self.names[:, -1].tolist()]

    def to_host(self, device: torch.device) -> None:
        """Take everything back from a GPU for updates that wait, of vectors on ``device``."""
        # A state loaded from a file may be elsewhere.
        self.vectors = self.vectors.to(device)
        if self.late_resolves is not None:
            self.warm[:] = self.started()
            self.drift, self.names = self.drift.cpu(), self.names.cpu()


def sweep_dtype(dtype: torch.dtype, shape: tuple[int, int], tolerance: float) -> torch.dtype:
    """Return the type of the vectors and the sweeps of matrices of this type and shape.

    float32 where the proved rounding of its products (bounds.py) leaves room below the tolerance
    for a flat spectrum, whose ||X||_F is sqrt(r) / 2 sigma_1 or less: at 1e-3 up to a short side
    of about 220.
    """
    r, rows = min(shape), max(shape)
    gamma_r, gamma_rows = ((34 + length / 32) * 2.0**-24 for length in (r, rows))
    rounding = 0.5 * r * (1.5 * gamma_r + 0.5 * gamma_rows)
    single = dtype != torch.float64 and rounding <= _ROUNDING_SHARE * tolerance
    return torch.float32 if single else torch.float64


class Updates(Protocol):
    """Prepared updates of batches (B, m, n) and their states."""

    def run(self) -> list[Tracked]:
        """Return the factors of each batch; its state is overwritten with the new one."""
        ...


@runtime_checkable
class LateUpdates(Updates, Protocol):
    """Updates that do not wait for their own certificates, so that matrices can be lost."""

    @property
    def lost(self) -> Tensor:
        """(sum of B,) bool on the device: whose bounds exceed the tolerance."""
        ...

    def resolve(self, which: Sequence[Sequence[int]]) -> None:
        """Solve matrices anew, as they are now, for the next run; indices for each batch."""
        ...

    def rebind(self, matrices: list[Tensor]) -> None:
        """Read from other memory from now on: batches of the same shapes, types and device."""
        ...


class LateWork(Sequence[str]):
    """What an update did, read from where it wrote that when it is looked at.

    Args:
        codes: (B,) whole numbers, -1 for "not finite", else the index in ``names``.
        lost: (B,) bool, the matrices whose bounds exceed the tolerance.
        names: what updates do, by code.
    """

    def __init__(self, codes: Tensor, lost: Tensor, names: Sequence[str] = WORK) -> None:
        self.codes, self.lost = codes, lost
        self._names = names

    def _read(self) -> list[str]:
        # Not kept: a replayed graph overwrites the codes without a word to Python.
        codes = self.codes.tolist()
        return [NOT_FINITE if code < 0 else self._names[int(code)] for code in codes]

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


def codes_of(work: Sequence[str], names: Sequence[str], device: torch.device) -> Tensor:
    """Return (B,) whole numbers on ``device``: -1 for "not finite", else the index in ``names``.

    Of `LateWork` they are not read, and stay where updates in place write them.
    """
    if isinstance(work, LateWork):
        return work.codes
    codes = [NOT_FINITE_CODE if entry == NOT_FINITE else names.index(entry) for entry in work]
    return torch.tensor(codes, dtype=torch.int64, device=device)


def lost_of(work: Sequence[str], device: torch.device) -> Tensor:
    """Return (B,) bool on ``device``: whose bounds exceed the tolerance.

    Updates that wait for their certificates solve such matrices at once, and nothing is lost.
    """
    if isinstance(work, LateWork):
        return work.lost
    return torch.zeros(len(work), dtype=torch.bool, device=device)


class Tracked(NamedTuple):
    """One update of a batch.

    Factors; bounds (B, r) float64 of each value and (B,) of the 2-norm of all their errors;
    identities (B, r) int64; and one entry of work per matrix.
    """

    svd: SVD
    bounds: Tensor
    error_norms: Tensor
    identities: Tensor
    work: Sequence[str]

    @property
    def codes(self) -> Tensor:
        """(B,) int64, with the factors: -1 for "not finite", else the index in ``WORK``."""
        return codes_of(self.work, WORK, self.bounds.device)

    @property
    def lost(self) -> Tensor:
        """(B,) bool, with the factors: see `lost_of`."""
        return lost_of(self.work, self.bounds.device)
