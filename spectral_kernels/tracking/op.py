"""Singular value decompositions of matrices that change a little between updates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_kernels.entry import checks
from spectral_kernels.entry.arrays import Array, Leave
from spectral_kernels.entry.factors import Matrices, enter_matrices
from spectral_kernels.entry.results import SVD, Decomposed
from spectral_kernels.tracking.outcome import Outcome
from spectral_kernels.tracking.results import Tracked
from spectral_kernels.tracking.tracker import PreparedUpdate, Tracker


class SpectrumTracker:
    """Singular value decompositions of the same matrices, again and again, each from the last.

    An update multiplies by the last vectors. Where the columns of the product are orthogonal
    enough, that is all; where they are not, up to three sweeps of Jacobi rotations turn the
    vectors; and where the bound still exceeds the tolerance, as after a jump, the matrix is
    solved anew. The bound is a theorem, whatever the matrix did since the last update; it is
    derived in ``spectral_kernels/tracking/bounds.py``. It says nothing of single vectors: those
    of values closer than their bounds mean something together only, see
    ``singular_value_clusters``. Compiled kernels take short sides up to 384; larger matrices are
    tracked by plain torch, and mostly cheaper with ``k``.

    On a GPU with Triton whole spectra are updated without waiting for the device, from the second
    update on; sweeps are float64. Rotations are decided there. What three of them do not bring
    within the tolerance is ``lost``: its bounds say so, and it is solved anew with one of the next
    updates. Results are written to the same memory each time, and copied unless buffers are
    reused.

    With ``k`` it follows the leading triplets alone: one iteration of a block of at least k + 8
    vectors from the last ones, with fresh random directions among them, in two reads of A; two or
    three where the values have not settled, a new start where the block is lost. Values are from
    below. What is proved of them, in ``spectral_kernels/tracking/leading/bounds.py``, is within
    the tolerance where the rest of the spectrum is small against the last values. Where it is
    not, the bounds are wide, since no product with the block can exclude a large value outside of
    it; ``residuals`` tell more there.

    Copied or pickled, it is its ``state_dict()``: the next updates of both are the same, bit by
    bit; what the last one told (``bounds``, ``work`` and so on) stays behind.

    Args:
        k: how many leading triplets, at least 1; a matrix with fewer gives them all. None: all.
        tolerance: the largest error bound of a singular value that may stand without more work,
            relative to sigma_1; positive. The rounding of the result comes on top, about
            eps sigma_1. The errors themselves are mostly far smaller. Sweeps are float32 where
            the rounding of its products, which alone makes bounds of 1e-4 sigma_1 and more (some
            3e-4 for a random matrix of side 128), leaves room below the tolerance: at 1e-3 up to a
            short side of about 220. Else they are float64.
        reuse_buffers: an update may overwrite the results of the one before. Saves their
            allocation, and with whole spectra all preparation where A is in the same memory as
            last time, as parameters are: for callers that are done with a result before the next
            update.

    Raises:
        TypeError, ValueError: the tolerance is not a positive finite number, k not an integer of
            at least 1.

    Example:
        >>> A = np.random.default_rng(0).standard_normal((32, 16))
        >>> tracker = sk.SpectrumTracker()
        >>> S = tracker.update(A).S
        >>> tracker.work
        ['solved']
        >>> S = tracker.update(A + 1e-6).S
        >>> bool((np.abs(S - np.linalg.svd(A + 1e-6)[1]) <= tracker.bounds).all())
        True
        >>> tracker.resolves
        0
    """

    def __init__(
        self, k: int | None = None, *, tolerance: float = 1e-3, reuse_buffers: bool = False
    ) -> None:
        if k is not None:
            checks.check_count(k, "k", 1)
        if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)):
            raise TypeError(f"tolerance is {tolerance!r}; expected a number")
        if not (tolerance > 0 and math.isfinite(tolerance)):
            raise ValueError(f"tolerance is {tolerance}; expected a positive finite number")
        self.k = k
        self.tolerance = float(tolerance)
        self.reuse_buffers = bool(reuse_buffers)
        self._tracker = Tracker(k, self.tolerance, reuse_buffers=self.reuse_buffers)
        self.reset()

    def reset(self) -> None:
        """Forget vectors, shapes and counts: the next update is the first."""
        self._tracker.reset()
        self._shapes: list[tuple[int, ...]] | None = None
        self._ranks: list[int | None] = []
        self._forget_results()

    def _forget_results(self) -> None:
        self._outcome: Outcome | None = None
        self._results: Sequence[Tracked] = ()
        self._leave: Leave = list
        self._returned: SVD | list[SVD] = []
        # Where the cores of decomposed matrices lie each time.
        self._places: dict[int, Tensor] = {}

    def _field(self, name: str) -> Array | list[Array] | None:
        """One field of the outcome, as the caller's arrays."""
        return None if self._outcome is None else self._leave(getattr(self._outcome, name))

    @property
    def bounds(self) -> Array | list[Array] | None:
        """Bounds of |S_i - sigma_i| of the last update, absolute, in its kind of array.

        (..., r) or (..., k) float64, a list where the update took one; NaN for a matrix that was
        not finite; None before the first update. For those of ranks and norms see
        ``bounds_from_value_bounds``.
        """
        return self._field("bounds")

    @property
    def error_norms(self) -> Array | list[Array] | None:
        """Bounds of the 2-norm of the vector of all errors S_i - sigma_i of the last update.

        (...,) float64, a list where the update took one. Mostly far less than the root of the sum
        of the squares of ``bounds``.
        """
        return self._field("error_norms")

    @property
    def core_errors(self) -> Array | list[Array] | None:
        """What the core of a ``Decomposed`` adds to ``bounds`` and ``error_norms``: (...) float64.

        A bound of the 2-norm of the differences between its singular values and those of the core,
        which is what is tracked; 0 for other matrices. None before the first update.
        """
        outcome = self._outcome
        if outcome is None:
            return None
        errors = enumerate(map(torch.zeros_like, outcome.error_norms))
        return self._leave([outcome.core_errors.get(i, zero) for i, zero in errors])

    @property
    def residuals(self) -> Array | list[Array] | None:
        """With k: bounds of ||A v_i - S_i u_i||, (..., k) float64; None for whole spectra.

        Some singular value lies within each of S_i, whether or not it is the i-th. The other
        residual, A^T u_i - S_i v_i, is rounding alone.
        """
        return None if self.k is None else self._field("residuals")

    @property
    def frobenius_norms(self) -> Array | list[Array] | None:
        """With k: ||A||_F of the whole matrices, (...) float64; None for whole spectra.

        Summed in float64 as A is read: what it has beyond S is the mass of all other values.
        """
        return None if self.k is None else self._field("frobenius_norms")

    @property
    def identities(self) -> Array | list[Array] | None:
        """Which vector is where: (..., r) or (..., k) int64 in the order of S, a list for a list.

        The first update numbers the vectors from 0 in the order of S, and each keeps its number
        while it turns, wherever its value moves to. One that cannot be followed, because it is
        within 45 degrees of no old vector, has a number not used before. -1 for a matrix that was
        not finite.
        """
        return self._field("identities")

    @property
    def work(self) -> list[str]:
        """What the last update did, one entry per matrix in order, batches unrolled.

        "kept" (the last vectors still hold), "rotated", "rotated twice", "rotated three times",
        "solved" (anew; the first time too), or "not finite". With k: "one iteration", "two
        iterations", "three iterations", "solved" or "not finite".
        """
        return [entry for result in self._results for entry in result.work]

    @property
    def codes(self) -> Array | list[Array] | None:
        """``work`` as numbers: (...,) int64 where the matrices are, a list for a list.

        -1 for "not finite", 0 for "kept", 1 to 3 for so many rotations or, with k, iterations, 4
        for "solved". Other than ``work`` they do not wait for a GPU. None before the first update.
        """
        return self._per_matrix(lambda result: result.work.codes.to(torch.int64))

    @property
    def lost(self) -> Array | list[Array] | None:
        """Which matrices of the last update have bounds beyond the tolerance: (...,) bool.

        On a GPU an update does not wait for its own bounds. Where they turn out too large, the
        values stand with these bounds, and the matrix is solved anew with a later update. On the
        CPU it is solved at once and nothing is lost. None before the first update.
        """
        return self._per_matrix(lambda result: result.work.lost)

    def _per_matrix(self, entries: Callable[[Tracked], Tensor]) -> Array | list[Array] | None:
        """``entries`` (B,) of every result, as the caller's arrays with batch dimensions."""
        if self._outcome is None:
            return None
        return self._leave(
            [entries(result).reshape(result.error_norms.shape) for result in self._results]
        )

    def prepared(self) -> PreparedUpdate | None:
        """The last update as an entry of a program, which updates the same matrices as they are
        then, in place; None where an update is more than calls of compiled kernels, or its results
        are somewhere else each time."""
        tracker = self._tracker
        if tracker.calls is None:
            return None
        if not self.reuse_buffers or self._places or self._outcome is None:
            return None
        codes = [x.work.codes.reshape(x.error_norms.shape) for x in self._results]
        return PreparedUpdate(tracker, codes)

    def resolve(self, which: Sequence[Sequence[int]]) -> None:
        """Solve matrices anew, as they are now, for the next update to start from.

        An update on a GPU does so by itself with matrices that were ``lost``, when it hears of
        them. This is for updates that are replayed from a captured graph, where no Python runs; it
        must not be captured itself. On the CPU there is nothing to do: every update solves what it
        loses.

        Args:
            which: for each entry of the list (one entry where it is no list), the indices of the
                matrices in its flattened batch.

        Raises:
            ValueError: not as many entries as there are matrices, or an index beyond the batch.
        """
        with torch.no_grad():
            self._tracker.resolve(which)

    @property
    def resolves(self) -> int:
        """How many matrices were solved anew so far because tracking lost them.

        The first decomposition of a matrix, for which there is nothing to track, is not counted.
        """
        return self._tracker.resolves

    def update(
        self,
        A: Array | Decomposed | Sequence[Array | Decomposed],
        *,
        vectors: int | Sequence[int] | None = None,
    ) -> SVD | list[SVD]:
        """Return the thin singular value decomposition A = U diag(S) Vh, up to ``bounds``.

        Args:
            A: (..., m, n) as for ``svd``, a batch being so many matrices with a state each. A
                list or tuple gives a list. Shapes stay the same from update to update. A
                ``Decomposed`` is tracked through its core (``entry/core/op.py``): as many
                triplets as its rank, and the rank stays the same, too.
            vectors: how many leading vectors of each ``Decomposed`` are wanted, one number or one
                for every matrix of a list; None: all. What is tracked are those of the core, and
                each that is lifted to the long sides costs (m + n) k operations. ``U`` and ``Vh``
                then have so many columns and rows, none for 0. Other matrices have all of theirs.

        Returns:
            ``SVD(U (..., m, r), S (..., r), Vh (..., r, n))``, detached, S descending; with k the
            first min(k, r) triplets, with orthonormal vectors. Signs are those of ``svd`` at
            first, and then carried on: a vector that turns a little does not flip. For whole
            spectra, vectors on the short side are orthonormal, to 2e-4 (mostly 1e-6) where sweeps
            are float32 (see ``tolerance``), and those on the long side to 0.03 in
            ||U^T U - I||_2, mostly 1e-3. Where the bounds would allow more, as after a collapse of
            the rank, vectors of smaller values are made orthogonal to those of larger ones, and
            zero values get what these leave free (on a GPU one program a matrix does so, and such
            updates take longer). A matrix with NaN or Inf gives NaN, and the next update goes on
            from the last finite one.

        Raises:
            TypeError: integer or complex dtype, or a tensor that keeps its values elsewhere, such
                as a DTensor or a sparse one.
            ValueError: shapes other than at the last update, fewer than two dimensions, mixed
                devices, a tensor without values (freed, meta, fake, inside ``torch.func``), or not
                as many ``vectors`` as matrices.
        """
        with torch.no_grad():
            matrices = enter_matrices(A, vectors=vectors, check=False, traced=False)
            if self.reuse_buffers:
                self._settle(matrices)
        tensors = matrices.tensors
        tracker = self._tracker
        prepared = tracker.is_prepared_for(tensors)
        if not prepared:
            checks.check_matrices(tensors)
        if not prepared or matrices.cores:
            self._check_shapes(matrices)
        with torch.no_grad():
            results = tracker.update(tensors) if tensors else []
        if prepared and results is self._results and not matrices.cores:
            # Overwritten in place: the caller's arrays are the same ones.
            return self._returned
        if self._shapes is None:
            self._shapes, self._ranks = matrices.shapes, matrices.ranks
        self._keep(results, matrices)
        return self._returned

    def _settle(self, matrices: Matrices) -> None:
        """Have cores where they were at the last update, which plans expect."""
        for i in matrices.cores:
            place, core = self._places.get(i), matrices.tensors[i]
            if place is not None and place.shape == core.shape and place.dtype == core.dtype:
                matrices.tensors[i] = place.copy_(core)
            else:
                self._places[i] = core

    def _keep(self, results: Sequence[Tracked], matrices: Matrices) -> None:
        """Keep what the properties and ``update`` return."""
        last = self._outcome if self.reuse_buffers else None
        outcome = Outcome.of(results, matrices, last)
        if last is not None and results is self._results and last.overwrite(outcome):
            return
        self._outcome, self._results, self._leave = outcome, results, matrices.leave
        self._returned = matrices.leave(outcome.svds)

    def state_dict(self) -> dict[str, Any]:
        """Return copies of what the next update needs, for ``torch.save``.

        ``shapes`` (None before the first update), ``ranks`` (of each decomposed matrix, None for
        others), ``resolves``, and what is kept of whole spectra (`WholeStates.state_dict`) or of
        leading triplets (`LeadingStates.state_dict`), which are those of cores.
        """
        shapes = None if self._shapes is None else list(self._shapes)
        return {"shapes": shapes, "ranks": list(self._ranks), **self._tracker.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``, a tracker's ``state_dict()``: updates equal its own bit by bit.

        Vectors of other matrices cost a new solution, never a wrong result.

        Raises:
            ValueError: missing or unknown keys, another k, or vectors that do not fit the shapes
                or are not orthonormal.
        """
        expected = set(self.state_dict())
        if set(state) != expected:
            raise ValueError(
                f"state has the keys {sorted(state)}; expected those of state_dict(): "
                f"{sorted(expected)}"
            )
        shapes = None if state["shapes"] is None else [tuple(s) for s in state["shapes"]]
        ranks = [None if k is None else int(k) for k in state["ranks"]]
        of_cores = [
            shape if k is None else (*shape[:-2], min(shape[-2], k), min(shape[-1], k))
            for shape, k in zip(shapes or [], ranks, strict=True)
        ]
        self._tracker.load_state_dict(state, of_cores)
        self._shapes, self._ranks = shapes, ranks
        self._forget_results()

    def __getstate__(self) -> dict[str, Any]:
        options = {"tolerance": self.tolerance, "reuse_buffers": self.reuse_buffers}
        return {"k": self.k, "options": options, "state": self.state_dict()}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        # Plans hold addresses of matrices: a copy makes its own at its first update.
        SpectrumTracker.__init__(self, saved["k"], **saved["options"])
        self.load_state_dict(saved["state"])

    def _check_shapes(self, matrices: Matrices) -> None:
        old = self._shapes
        if old is None:
            return
        if len(matrices.tensors) != len(old):
            raise ValueError(
                f"A has {len(matrices.tensors)} matrices and had {len(old)} at the last update; "
                "expected the same ones, or a call of reset() first"
            )
        labels = checks.names("A", len(old), matrices.single)
        now = zip(matrices.shapes, matrices.ranks, strict=True)
        before = zip(old, self._ranks, strict=True)
        for new, last, name in zip(now, before, labels, strict=True):
            if new != last:
                raise ValueError(
                    f"{name} has shape {_described(*new)} and had {_described(*last)} at the "
                    "last update; expected the same, or a call of reset() first"
                )


def _described(shape: tuple[int, ...], rank: int | None) -> str:
    return f"{shape}" if rank is None else f"{shape} of rank {rank}"
