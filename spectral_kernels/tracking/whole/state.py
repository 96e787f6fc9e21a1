"""What is carried from step to step of whole spectra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectral_kernels.runtime import dispatch
from spectral_kernels.tracking.bounds import departure_bound
from spectral_kernels.tracking.results import SOLVED, Tracked, Updates

WORK = ("kept", "rotated", "rotated twice", "rotated three times", "solved")
"""What an update did to a matrix, by its code."""

ROTATIONS = 3
"""The most rotations before a matrix is solved anew."""

LARGEST_ROW = 0.6
"""The most that a row of a rotation's generator E may add up to: beyond it I + E + E^2/2 is too far
from orthogonal for Newton-Schulz to mend in a step or two."""

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


class WholeStates:
    """The states of whole spectra; see ``plan.States``."""

    solved = WORK[SOLVED]

    def __init__(self) -> None:
        self._states: list[State] = []

    def __len__(self) -> int:
        return len(self._states)

    @property
    def late_resolves(self) -> int:
        """How many matrices a device solved anew by its own count; looking waits for it."""
        late = [state.late_resolves for state in self._states]
        return sum(int(count) for count in late if count is not None)

    def begin(self, tensors: list[Tensor], tolerance: float) -> None:
        """Make room for tensors (..., m, n) that have no vectors yet."""
        self._states = [
            State.cold(
                math.prod(A.shape[:-2]), min(A.shape[-2:]),
                sweep_dtype(A.dtype, (A.shape[-2], A.shape[-1]), tolerance), A.device,
            )
            for A in tensors
        ]  # fmt: skip

    def warm(self) -> list[list[bool]]:
        """Which matrices of each entry have vectors, as far as the host knows."""
        return [list(state.warm) for state in self._states]

    def prepare(self, matrices: list[Tensor], which: list[int], tolerance: float) -> Updates:
        """Return the updates of batches (B, m, n), which are the entries ``which``."""
        backend: Any = dispatch.backend("tracking.whole", matrices[0].device.type)
        updates: Updates = backend.prepare(matrices, [self._states[i] for i in which], tolerance)
        return updates

    def nothing(self, A: Tensor) -> Tracked:
        """Return the result of a batch without entries."""
        return Tracked.nothing(A, min(A.shape[-2:]), WORK[0], WORK, leading=False)

    def state_dict(self) -> dict[str, Any]:
        """Return copies of what the next update needs.

        Per entry of the list ``vectors`` (B, r, r), ``drift`` (B,), ``names`` (B, r + 1) and
        ``warm`` (one truth value per matrix).
        """
        return {
            "vectors": [state.vectors.clone() for state in self._states],
            "drift": [state.drift.to("cpu", copy=True) for state in self._states],
            "names": [state.names.to("cpu", copy=True) for state in self._states],
            "warm": [state.started() for state in self._states],
        }

    def load_state_dict(self, state: dict[str, Any], shapes: list[tuple[int, ...]]) -> None:
        """Go on from a ``state_dict()`` of matrices of these shapes.

        Raises:
            ValueError: vectors that do not fit the shapes or are not orthonormal.
        """
        parts = (state["vectors"], state["drift"], state["names"], state["warm"])
        self._states = [
            _loaded(f"[{i}]", shape, *part)
            for i, (shape, *part) in enumerate(zip(shapes, *parts, strict=True))
        ]


def _loaded(
    where: str,
    shape: tuple[int, ...],
    V: Tensor,
    drift: Tensor,
    names: Tensor,
    warm: Sequence[bool],
) -> State:
    """Return the state of one entry of the list, checked."""
    count, r = math.prod(shape[:-2]), min(shape[-2:])
    given = (tuple(V.shape), tuple(drift.shape), tuple(names.shape), len(warm))
    if given != ((count, r, r), (count,), (count, r + 1), count):
        raise ValueError(
            f"vectors{where}, drift{where}, names{where} and warm{where} have the shapes {given}; "
            f"expected {((count, r, r), (count,), (count, r + 1), count)} for a matrix of shape "
            f"{shape}"
        )
    V = V.detach()
    state = State(
        V.to(torch.float32 if V.dtype == torch.float32 else torch.float64, copy=True).contiguous(),
        drift.detach().to("cpu", torch.float64, copy=True),
        names.detach().to("cpu", torch.int64, copy=True).contiguous(),
        [bool(x) for x in warm],
    )
    for j in (j for j, is_warm in enumerate(warm) if is_warm):
        measured = departure_bound(state.vectors[j].double())
        # False for NaN, too.
        if not measured <= 0.1:
            raise ValueError(
                f"vectors{where}[{j}] has columns that are not orthonormal; expected vectors from "
                "state_dict()"
            )
        state.drift[j] = max(float(state.drift[j]), measured)
    return state
