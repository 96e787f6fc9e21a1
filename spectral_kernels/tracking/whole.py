"""The part of ``SpectrumTracker`` that follows whole spectra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_kernels import dispatch
from spectral_kernels.numerics import result_dtype
from spectral_kernels.results import SVD
from spectral_kernels.tracking.bounds import departure_bound
from spectral_kernels.tracking.state import SOLVED, WORK, State, Tracked, sweep_dtype


class WholeTracker:
    """All singular values of each of many tensors on one device, from update to update.

    Args:
        tolerance, reuse_buffers: as for ``SpectrumTracker``.
    """

    def __init__(self, tolerance: float, *, reuse_buffers: bool) -> None:
        self.tolerance = tolerance
        self.reuse_buffers = reuse_buffers
        self.reset()

    def reset(self) -> None:
        """Forget vectors and counts."""
        self._states: list[State] = []
        self._plan: Plan | None = None
        # The tensors that the plan was just found to fit.
        self._checked: list[Tensor] | None = None
        self.resolves = 0

    def is_prepared_for(self, tensors: list[Tensor]) -> bool:
        """Whether these are those of the last update, in the same memory."""
        fits = self._plan is not None and self._plan.fits(tensors)
        self._checked = tensors if fits else None
        return fits

    def update(self, tensors: list[Tensor]) -> list[Tracked]:
        """Return the decomposition of each tensor (..., m, n), with its batch dimensions."""
        if not self._states:
            self._states = [
                State.cold(
                    math.prod(A.shape[:-2]), min(A.shape[-2:]),
                    sweep_dtype(A.dtype, (A.shape[-2], A.shape[-1]), self.tolerance), A.device,
                )
                for A in tensors
            ]  # fmt: skip
        before = [warm for state in self._states for warm in state.warm]
        plan = self._plan
        if plan is None or (tensors is not self._checked and not plan.fits(tensors)):
            plan = Plan(tensors, self._states, self.tolerance)
        self._checked = None
        self._plan = plan if self.reuse_buffers else None
        results = plan.run()
        work = [entry for tracked in results for entry in tracked.work]
        if WORK[SOLVED] in work:
            self.resolves += sum(
                warm and entry == WORK[SOLVED] for warm, entry in zip(before, work, strict=True)
            )
        return results

    def state_dict(self) -> dict[str, Any]:
        """Return copies of what the next update needs.

        Per entry of the list ``vectors`` (B, r, r), ``drift`` (B,), ``names`` (B, r + 1) and
        ``warm`` (one truth value per matrix); and ``resolves``.
        """
        return {
            "vectors": [state.vectors.clone() for state in self._states],
            "drift": [state.drift.clone() for state in self._states],
            "names": [state.names.clone() for state in self._states],
            "warm": [list(state.warm) for state in self._states],
            "resolves": self.resolves,
        }

    def load_state_dict(self, state: dict[str, Any], shapes: list[tuple[int, ...]]) -> None:
        """Go on from a ``state_dict()`` of matrices of these shapes.

        Raises:
            ValueError: vectors that do not fit the shapes or are not orthonormal.
        """
        parts = (state["vectors"], state["drift"], state["names"], state["warm"])
        states = [
            _loaded(f"[{i}]", shape, *part)
            for i, (shape, *part) in enumerate(zip(shapes, *parts, strict=True))
        ]
        self.reset()
        self._states, self.resolves = states, int(state["resolves"])


class Plan:
    """The updates of matrices that lie in the same memory each time."""

    def __init__(self, tensors: list[Tensor], states: list[State], tolerance: float) -> None:
        self._places = [_place(A) for A in tensors]
        self._tensors = tensors
        flat = [A.reshape(-1, *A.shape[-2:]) if A.numel() else A for A in tensors]
        # A batch that cannot be flattened in place was copied: such a plan is for once.
        self._in_place = all(
            A.data_ptr() == B.data_ptr() for A, B in zip(tensors, flat, strict=True)
        )
        device = tensors[0].device
        for state in states:
            # A state loaded from a file may be elsewhere.
            state.vectors = state.vectors.to(device)
        self._filled = [i for i, A in enumerate(flat) if A.numel()]
        self._found: list[Tracked] = []
        self._results = [_nothing(A) for A in tensors]
        self._updates = None
        if self._filled:
            self._updates = dispatch.backend("tracking", device.type).prepare(
                [flat[i] for i in self._filled], [states[i] for i in self._filled], tolerance
            )

    def fits(self, tensors: list[Tensor]) -> bool:
        """Whether these lie where the plan's tensors lie."""
        return self._in_place and self._places == [_place(A) for A in tensors]

    def run(self) -> list[Tracked]:
        """Update, in order; the results of the run before are overwritten."""
        found = self._updates.run() if self._updates is not None else []
        # The same buffers as last time have the same views.
        if not self._found or any(a is not b for a, b in zip(found, self._found, strict=True)):
            # A new list, by which the caller sees that the places are new.
            self._results = list(self._results)
            for i, tracked in zip(self._filled, found, strict=True):
                self._results[i] = _unflatten(tracked, self._tensors[i])
            self._found = found
        return self._results


def _place(A: Tensor) -> tuple[Any, ...]:
    return A.data_ptr(), A.dtype, A.shape, A.stride(), A.device


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
    found = (tuple(V.shape), tuple(drift.shape), tuple(names.shape), len(warm))
    if found != ((count, r, r), (count,), (count, r + 1), count):
        raise ValueError(
            f"vectors{where}, drift{where}, names{where} and warm{where} have the shapes {found}; "
            f"expected {((count, r, r), (count,), (count, r + 1), count)} for a matrix of shape "
            f"{shape}"
        )
    V = V.detach()
    state = State(
        V.to(torch.float32 if V.dtype == torch.float32 else torch.float64, copy=True).contiguous(),
        drift.detach().to(torch.float64, copy=True),
        names.detach().to(torch.int64, copy=True).contiguous(),
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


def _nothing(A: Tensor) -> Tracked:
    """Return the factors of a batch without entries, by the shape it has."""
    *batch, m, n = A.shape
    r = min(m, n)
    dtype = result_dtype(A.dtype)
    svd = SVD(
        A.new_zeros((*batch, r, m), dtype=dtype).mT,
        A.new_zeros((*batch, r), dtype=dtype),
        A.new_zeros((*batch, r, n), dtype=dtype),
    )
    return Tracked(
        svd,
        A.new_zeros((*batch, r), dtype=torch.float64),
        A.new_zeros(batch, dtype=torch.float64),
        A.new_zeros((*batch, r), dtype=torch.int64),
        [WORK[0]] * math.prod(batch),
    )


def _unflatten(tracked: Tracked, A: Tensor) -> Tracked:
    """Return one update with the batch dimensions of ``A``."""
    *batch, m, n = A.shape
    r = min(m, n)
    U, S, Vh = tracked.svd
    Ut = U.mT.reshape(*batch, r, m)
    return Tracked(
        SVD(Ut.mT, S.reshape(*batch, r), Vh.reshape(*batch, r, n)),
        tracked.bounds.reshape(*batch, r),
        tracked.error_norms.reshape(batch),
        tracked.identities.reshape(*batch, r),
        tracked.work,
    )
