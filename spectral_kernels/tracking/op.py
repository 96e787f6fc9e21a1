"""The full spectrum of matrices that change a little between updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_kernels import checks, dispatch
from spectral_kernels.arrays import Array, Leave, enter
from spectral_kernels.numerics import result_dtype
from spectral_kernels.results import SVD
from spectral_kernels.tracking.leading.op import LeadingTracker
from spectral_kernels.tracking.state import WORK, State, Tracked


class SpectrumTracker:
    """Singular value decompositions of the same matrices, again and again, each from the last.

    An update multiplies by the last vectors. Where the columns of the product are orthogonal
    enough, that is all; where they are not, one or two sweeps of Jacobi rotations turn the
    vectors; and where the bound still exceeds the tolerance, as after a jump, the matrix is
    solved anew. The bound is a theorem, whatever the matrix did since the last update; it is
    derived in ``spectral_kernels/tracking/bounds.py``.

    With ``k`` it follows the leading triplets alone: one iteration of a block of at least k + 8
    vectors from the last ones, with fresh random directions among them, in two reads of A; two or
    three where the values have not settled, a new start where the block is lost. Values are from
    below. What is proved of them, in ``spectral_kernels/tracking/leading/bounds.py``, is within
    the tolerance where the rest of the spectrum is small against the last values, and says little
    where it is not, as no product with the block can; ``residuals`` tell more there.

    Args:
        k: how many leading triplets, at least 1; a matrix with fewer gives them all. None: all.
        tolerance: the largest error bound of a singular value that may stand without more work,
            relative to sigma_1; positive. Rounding comes on top, about eps sigma_1 in float32.
            The errors themselves are mostly far smaller.

    Raises:
        TypeError, ValueError: the tolerance is not a positive finite number, k not an integer of
            at least 1.
    """

    def __init__(self, k: int | None = None, *, tolerance: float = 1e-3) -> None:
        if k is not None:
            checks.check_count(k, "k", 1)
        if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)):
            raise TypeError(f"tolerance is {tolerance!r}; expected a number")
        if not (tolerance > 0 and math.isfinite(tolerance)):
            raise ValueError(f"tolerance is {tolerance}; expected a positive finite number")
        self.k = k
        self.tolerance = float(tolerance)
        self._leading = None if k is None else LeadingTracker(k, self.tolerance)
        self.reset()

    def reset(self) -> None:
        """Forget vectors, shapes and counts: the next update is the first."""
        self._shapes: list[tuple[int, ...]] | None = None
        self._states: list[State] = []
        self._bounds: Array | list[Array] | None = None
        self._error_norms: Array | list[Array] | None = None
        self._residuals: Array | list[Array] | None = None
        self._identities: Array | list[Array] | None = None
        self._work: list[str] = []
        self._resolves = 0
        if self._leading is not None:
            self._leading.reset()

    @property
    def bounds(self) -> Array | list[Array] | None:
        """Bounds of |S_i - sigma_i| of the last update, absolute, in its kind of array.

        (..., r) float64, a list where the update took one; NaN for a matrix that was not finite;
        None before the first update.
        """
        return self._bounds

    @property
    def error_norms(self) -> Array | list[Array] | None:
        """With k: bounds of the 2-norm of the errors (S_i - sigma_i)_i, (...) float64."""
        return self._error_norms

    @property
    def residuals(self) -> Array | list[Array] | None:
        """With k: bounds of ||A v_i - S_i u_i||, (..., k) float64.

        Some singular value lies within each of S_i, whether or not it is the i-th. The other
        residual, A^T u_i - S_i v_i, is rounding alone.
        """
        return self._residuals

    @property
    def identities(self) -> Array | list[Array] | None:
        """With k: which vector sits at each position, (..., k) int64, -1 where A is not finite.

        Numbers from 0 at the first update, which stay with a vector while it turns by less than 45
        degrees an update, through crossings too; one that resembles no old vector gets a new one.
        """
        return self._identities

    @property
    def work(self) -> list[str]:
        """What the last update did, one entry per matrix in order, batches unrolled.

        "kept" (the last vectors still hold), "rotated", "rotated twice", "solved" (anew; the
        first time too), or "not finite". With k: "one iteration", "two iterations", "three
        iterations", "solved" or "not finite".
        """
        return list(self._work)

    @property
    def resolves(self) -> int:
        """How many matrices were solved anew so far because tracking lost them.

        The first decomposition of a matrix, for which there is nothing to track, is not counted.
        """
        return self._resolves if self._leading is None else self._leading.resolves

    def update(self, A: Array | Sequence[Array]) -> SVD | list[SVD]:
        """Return the thin singular value decomposition A = U diag(S) Vh, up to ``bounds``.

        Args:
            A: (..., m, n) as for ``svd``, a batch being so many matrices with a state each. A
                list or tuple gives a list. Shapes stay the same from update to update.

        Returns:
            ``SVD(U (..., m, r), S (..., r), Vh (..., r, n))``, detached, S descending, the
            first min(k, r) triplets where k is given, with orthonormal vectors. Signs are
            those of ``svd`` at first, and then carried on: a vector that turns a little does not
            flip. Vectors on the short side are orthonormal. Cosines of two on the long side are
            what the bounds allow, |cos| min(S_i, S_j) <= 2 max(bounds): tiny where the values
            are large. A matrix with NaN or Inf gives NaN, and the next update goes on from the last
            finite one.

        Raises:
            TypeError: integer or complex dtype.
            ValueError: shapes other than at the last update, fewer than two dimensions, mixed
                devices.
        """
        tensors, leave = enter(A)
        checks.check_matrices(tensors)
        single = not isinstance(A, (list, tuple))
        self._check_shapes([tuple(x.shape) for x in tensors], single)
        if self._leading is not None:
            return self._update_leading(self._leading, tensors, leave)
        with torch.no_grad():
            results = self._update(tensors) if tensors else []
        self._bounds = leave([bounds for _, bounds in results])
        result: SVD | list[SVD] = leave([svd for svd, _ in results])
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return copies of what the next update needs, for ``torch.save``.

        ``shapes`` (None before the first update), ``vectors`` (one (B, r, r) float64 tensor per
        entry of the list), ``warm`` (per entry, one truth value per matrix) and ``resolves``.
        With k: ``k``, ``updates`` and ``identities`` too, and (B, n, l) vectors.
        """
        if self._leading is not None:
            shapes = None if self._shapes is None else list(self._shapes)
            return {"shapes": shapes, **self._leading.state_dict()}
        return {
            "shapes": None if self._shapes is None else list(self._shapes),
            "vectors": [state.vectors.clone() for state in self._states],
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
        expected = set(self.state_dict())
        if set(state) != expected:
            raise ValueError(
                f"state has the keys {sorted(state)}; expected those of state_dict(): "
                f"{sorted(expected)}"
            )
        shapes = None if state["shapes"] is None else [tuple(s) for s in state["shapes"]]
        if self._leading is not None:
            self._leading.load_state_dict(state, shapes or [])
            self._shapes, self._work = shapes, []
            self._bounds = self._error_norms = self._residuals = self._identities = None
            return
        states = []
        for i, (shape, V, warm) in enumerate(
            zip(shapes or [], state["vectors"], state["warm"], strict=True)
        ):
            count, r = math.prod(shape[:-2]), min(shape[-2:])
            if tuple(V.shape) != (count, r, r) or len(warm) != count:
                raise ValueError(
                    f"vectors[{i}] has shape {tuple(V.shape)} and warm[{i}] {len(warm)} entries; "
                    f"expected {(count, r, r)} and {count} for a matrix of shape {shape}"
                )
            vectors = V.detach().to(torch.float64, copy=True).contiguous()
            _check_orthonormal(vectors, warm, f"vectors[{i}]")
            states.append(State(vectors, [bool(x) for x in warm]))
        self.reset()
        self._shapes, self._states = shapes, states
        self._resolves = int(state["resolves"])

    def _update_leading(
        self, tracker: LeadingTracker, tensors: list[Tensor], leave: Leave
    ) -> SVD | list[SVD]:
        self._shapes = [tuple(A.shape) for A in tensors]
        with torch.no_grad():
            results = tracker.update(tensors) if tensors else []
        self._bounds = leave([x.bounds for x in results])
        self._error_norms = leave([x.error_norms for x in results])
        self._residuals = leave([x.residuals for x in results])
        self._identities = leave([x.identities for x in results])
        self._work = [entry for x in results for entry in x.work]
        result: SVD | list[SVD] = leave([x.svd for x in results])
        return result

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

    def _update(self, tensors: list[Tensor]) -> list[tuple[SVD, Tensor]]:
        if self._shapes is None:
            self._shapes = [tuple(A.shape) for A in tensors]
            self._states = [_cold(A) for A in tensors]
        flat = [A.reshape(-1, *A.shape[-2:]) if A.numel() else A for A in tensors]
        device = tensors[0].device
        for state in self._states:
            # A state loaded from a file may be elsewhere.
            state.vectors = state.vectors.to(device)
        before = [warm for state in self._states for warm in state.warm]
        results = self._track(flat, device.type)
        self._work = [entry for tracked in results for entry in tracked.work]
        self._resolves += sum(
            warm and entry == WORK[3] for warm, entry in zip(before, self._work, strict=True)
        )
        return [_unflatten(t, A) for t, A in zip(results, tensors, strict=True)]

    def _track(self, flat: list[Tensor], device: str) -> list[Tracked]:
        filled = [i for i, A in enumerate(flat) if A.numel()]
        results = [_nothing(A) for A in flat]
        if filled:
            tracked = dispatch.backend("tracking", device).track(
                [flat[i] for i in filled], [self._states[i] for i in filled], self.tolerance
            )
            for i, found in zip(filled, tracked, strict=True):
                results[i] = found
        return results


def _cold(A: Tensor) -> State:
    count, r = math.prod(A.shape[:-2]), min(A.shape[-2:])
    return State(A.new_zeros((count, r, r), dtype=torch.float64), [False] * count)


def _check_orthonormal(vectors: Tensor, warm: Sequence[bool], name: str) -> None:
    """Raise ValueError unless every warm matrix has orthonormal columns, up to a loose 1e-2."""
    for j, V in enumerate(vectors):
        eye = torch.eye(V.shape[-1], dtype=V.dtype, device=V.device)
        # False for NaN, too. Entries first: huge ones overflow in the product.
        fits = bool((V.abs() <= 2.0).all()) and bool(((V.mT @ V - eye).abs() <= 1e-2).all())
        if warm[j] and not fits:
            raise ValueError(
                f"{name}[{j}] has columns that are not orthonormal; expected vectors from "
                "state_dict()"
            )


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
    bounds = A.new_zeros((*batch, r), dtype=torch.float64)
    return Tracked(svd, bounds, [WORK[0]] * math.prod(batch))


def _unflatten(tracked: Tracked, A: Tensor) -> tuple[SVD, Tensor]:
    """Return factors and bounds with the batch dimensions of ``A``."""
    *batch, m, n = A.shape
    r = min(m, n)
    U, S, Vh = tracked.svd
    Ut = U.mT.reshape(*batch, r, m)
    svd = SVD(Ut.mT, S.reshape(*batch, r), Vh.reshape(*batch, r, n))
    return svd, tracked.bounds.reshape(*batch, r)
