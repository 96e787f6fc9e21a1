"""The full spectrum of matrices that change a little between updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_kernels import checks, dispatch
from spectral_kernels.arrays import Array, enter
from spectral_kernels.numerics import result_dtype
from spectral_kernels.results import SVD
from spectral_kernels.tracking.bounds import departure_bound
from spectral_kernels.tracking.state import SOLVED, WORK, State, Tracked, sweep_dtype


class SpectrumTracker:
    """Singular value decompositions of the same matrices, again and again, each from the last.

    An update multiplies by the last vectors. Where the columns of the product are orthogonal
    enough, that is all; where they are not, one or two sweeps of Jacobi rotations turn the
    vectors; and where the bound still exceeds the tolerance, as after a jump, the matrix is
    solved anew. The bound is a theorem, whatever the matrix did since the last update; it is
    derived in ``spectral_kernels/tracking/bounds.py``.

    Args:
        tolerance: the largest error bound of a singular value that may stand without more work,
            relative to sigma_1; positive. Rounding comes on top, about eps sigma_1 in float32.
            The errors themselves are mostly far smaller.
        reuse_buffers: every update overwrites the results of the one before, and an update of
            the same memory costs no preparation: for callers that read the results at once.

    Raises:
        TypeError, ValueError: the tolerance is not a positive finite number.
    """

    def __init__(self, *, tolerance: float = 1e-3, reuse_buffers: bool = False) -> None:
        if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)):
            raise TypeError(f"tolerance is {tolerance!r}; expected a number")
        if not (tolerance > 0 and math.isfinite(tolerance)):
            raise ValueError(f"tolerance is {tolerance}; expected a positive finite number")
        self.tolerance = float(tolerance)
        self.reuse_buffers = bool(reuse_buffers)
        self.reset()

    def reset(self) -> None:
        """Forget vectors, shapes and counts: the next update is the first."""
        self._shapes: list[tuple[int, ...]] | None = None
        self._states: list[State] = []
        self._plan: Plan | None = None
        self._bounds: Array | list[Array] | None = None
        self._error_norms: Array | list[Array] | None = None
        self._identities: Array | list[Array] | None = None
        self._work: list[str] = []
        self._resolves = 0

    @property
    def bounds(self) -> Array | list[Array] | None:
        """Bounds of |S_i - sigma_i| of the last update, absolute, in its kind of array.

        (..., r) float64, a list where the update took one; NaN for a matrix that was not finite;
        None before the first update.
        """
        return self._bounds

    @property
    def error_norms(self) -> Array | list[Array] | None:
        """Bounds of the 2-norm of the vector of all errors S_i - sigma_i of the last update.

        (...,) float64, a list where the update took one. Mostly far less than the root of the sum
        of the squares of ``bounds``.
        """
        return self._error_norms

    @property
    def identities(self) -> Array | list[Array] | None:
        """Which vector is where: (..., r) int64, in the order of S, a list for a list.

        The first update numbers the vectors from 0 in the order of S, and each keeps its number
        while it turns, wherever its value moves to. One that cannot be followed, because a matrix
        was solved anew and no old vector is within 45 degrees, has a number not used before.
        -1 for a matrix that was not finite.
        """
        return self._identities

    @property
    def work(self) -> list[str]:
        """What the last update did, one entry per matrix in order, batches unrolled.

        "kept" (the last vectors still hold), "rotated", "rotated twice", "rotated three times",
        "solved" (anew; the first time too), or "not finite".
        """
        return list(self._work)

    @property
    def resolves(self) -> int:
        """How many matrices were solved anew so far because tracking lost them.

        The first decomposition of a matrix, for which there is nothing to track, is not counted.
        """
        return self._resolves

    def update(self, A: Array | Sequence[Array]) -> SVD | list[SVD]:
        """Return the thin singular value decomposition A = U diag(S) Vh, up to ``bounds``.

        Args:
            A: (..., m, n) as for ``svd``, a batch being so many matrices with a state each. A
                list or tuple gives a list. Shapes stay the same from update to update.

        Returns:
            ``SVD(U (..., m, r), S (..., r), Vh (..., r, n))``, detached, S descending. Signs are
            those of ``svd`` at first, and then carried on: a vector that turns a little does not
            flip. Vectors on the short side are orthonormal, to 2e-4 (mostly 1e-6) where sweeps are
            float32: for input up to float32 with a tolerance of 5e-4 or more. Cosines of two on
            the long side are what the bounds allow, |cos| min(S_i, S_j) <= 2 max(bounds): tiny
            where the values are large. A matrix with NaN or Inf gives NaN, and the next update
            goes on from the last finite one.

        Raises:
            TypeError: integer or complex dtype.
            ValueError: shapes other than at the last update, fewer than two dimensions, mixed
                devices.
        """
        tensors, leave = enter(A)
        if self._plan is None or not self._plan.fits(tensors):
            checks.check_matrices(tensors)
            single = not isinstance(A, (list, tuple))
            self._check_shapes([tuple(x.shape) for x in tensors], single)
            self._plan = None
        with torch.no_grad():
            results = self._update(tensors) if tensors else []
        self._bounds = leave([found.bounds for found in results])
        self._error_norms = leave([found.error_norms for found in results])
        self._identities = leave([found.identities for found in results])
        result: SVD | list[SVD] = leave([found.svd for found in results])
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return copies of what the next update needs, for ``torch.save``.

        ``shapes`` (None before the first update); per entry of the list ``vectors`` (B, r, r),
        ``drift`` (B,), ``names`` (B, r + 1) and ``warm`` (one truth value per matrix); and
        ``resolves``.
        """
        return {
            "shapes": None if self._shapes is None else list(self._shapes),
            "vectors": [state.vectors.clone() for state in self._states],
            "drift": [state.drift.clone() for state in self._states],
            "names": [state.names.clone() for state in self._states],
            "warm": [list(state.warm) for state in self._states],
            "resolves": self._resolves,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the ``state_dict()`` of a tracker; updates then equal its own bit by bit.

        Vectors of other matrices cost a new solution, never a wrong result.

        Raises:
            ValueError: missing or unknown keys, or vectors that do not fit the shapes or are not
                orthonormal.
        """
        expected = {"shapes", "vectors", "drift", "names", "warm", "resolves"}
        if set(state) != expected:
            raise ValueError(
                f"state has the keys {sorted(state)}; expected those of state_dict(): "
                f"{sorted(expected)}"
            )
        shapes = None if state["shapes"] is None else [tuple(s) for s in state["shapes"]]
        parts = (state["vectors"], state["drift"], state["names"], state["warm"])
        states = [
            _loaded(f"[{i}]", shape, *part)
            for i, (shape, *part) in enumerate(zip(shapes or [], *parts, strict=True))
        ]
        self.reset()
        self._shapes, self._states = shapes, states
        self._resolves = int(state["resolves"])

    def _check_shapes(self, shapes: list[tuple[int, ...]], single: bool) -> None:
        old = self._shapes
        if old is None:
            return
        if len(shapes) != len(old):
            raise ValueError(
                f"A has {len(shapes)} matrices and had {len(old)} at the last update; expected the "
                "same ones, or a call of reset() first"
            )
        for shape, before, name in zip(
            shapes, old, checks.names("A", len(old), single), strict=True
        ):
            if shape != before:
                raise ValueError(
                    f"{name} has shape {shape} and had {before} at the last update; expected the "
                    "same shape, or a call of reset() first"
                )

    def _update(self, tensors: list[Tensor]) -> list[Tracked]:
        if self._shapes is None:
            self._shapes = [tuple(A.shape) for A in tensors]
            self._states = [
                State.cold(
                    math.prod(A.shape[:-2]), min(A.shape[-2:]),
                    sweep_dtype(A.dtype, self.tolerance), A.device,
                )
                for A in tensors
            ]  # fmt: skip
        before = [warm for state in self._states for warm in state.warm]
        plan = self._plan or Plan(tensors, self._states, self.tolerance)
        results = plan.run()
        self._plan = plan if self.reuse_buffers else None
        self._work = [entry for tracked in results for entry in tracked.work]
        self._resolves += sum(
            warm and entry == WORK[SOLVED] for warm, entry in zip(before, self._work, strict=True)
        )
        return results


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
