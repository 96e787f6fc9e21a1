"""What moves the weights: updates between measured steps, and gradients, in the weights' schema.

An update is W_t - W_(t-1) for two measured steps, a gradient what ``parameter.grad`` holds when
the monitor is stepped (the last one that ``backward`` left, where ``zero_grad`` has not been
called yet). Each is a matrix like the weight, named ``fc1.weight[update]`` and
``fc1.weight[gradient]``, with a row of its own; it is NaN and not finite where there is none:
updates at the first step, gradients of parameters that have none. A decomposed layer has updates,
see `step.differences`; the gradients that its factors have do not tell that of the matrix,
nor do those of the parameters that a parametrized weight is computed of.

They turn too fast to be tracked: all values and vectors up to a short side of 384, beyond it 32
leading triplets.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from spectral_monitor.model.matrix import Kept, Matrix, MatrixView, UnreadableMatrixError, shape_of
from spectral_monitor.model.registry import Skipped
from spectral_monitor.step.derived import SCALARS, Asked, Derived
from spectral_monitor.step.differences import difference, remembered, unknown
from spectral_monitor.step.frame import Array, MatrixRow
from spectral_monitor.step.readings import Readings
from spectral_monitor.step.row_table import tell_reasons
from spectral_monitor.step.solvers import ExactSolver, RandomizedSolver, Solved
from spectral_monitor.step.unpacking import Unpacking
from torch import Tensor

from spectral_kernels.alignment.clusters import cluster_cosines_list
from spectral_kernels.entry.results import SVD, Decomposed
from spectral_kernels.runtime.limits import DIRECT_SIDE, SCORE_ENTRIES
from spectral_kernels.runtime.numerics import default_rtol, result_dtype

Watchable = Literal["weights", "updates", "gradients"]
WATCHABLE = ("weights", "updates", "gradients")
_KINDS = {"updates": "update", "gradients": "gradient"}
_NO_GRADIENT = "its factors have gradients, and the matrix, which is no parameter, has none"
_NO_UPDATE = "there is no step before this one at which it was read"
_GRADIENT_IS_NONE = "the parameter has no gradient: before backward, or after zero_grad"
_TRIPLETS = 32


def check_watch(watch: Sequence[str] | str) -> tuple[str, ...]:
    """The names in ``watch``, each once.

    Raises:
        ValueError: an unknown name, or the weights left out.
    """
    names = tuple(dict.fromkeys([watch] if isinstance(watch, str) else watch))
    if "weights" not in names or not set(names) <= set(WATCHABLE):
        raise ValueError(
            f"watch: expected 'weights' and, if wanted, {' and '.join(map(repr, WATCHABLE[1:]))}, "
            f"got {watch!r}"
        )
    return names


class Changes:
    """Spectra of updates and gradients, and how they lie to the weights' leading directions.

    Args:
        matrices: the weights under watch.
        watch: see `check_watch`.
        generator: for the random start beyond a short side of 384.
        k: how many vectors of the weights take part, of which at most 10 are compared.
        grad_scale: what gradients are divided by, see `grad_scale_of`.
    """

    def __init__(
        self,
        matrices: Sequence[Matrix],
        watch: Sequence[str],
        generator: torch.Generator,
        k: int,
        grad_scale: Callable[[], float] | None = None,
    ) -> None:
        self._grad_scale = grad_scale
        self.subspace = min(k, SCORE_ENTRIES)
        self._matrices = matrices
        self._before: list[Kept] | None = None
        # Weights of which there are none before, since they could not be read.
        self._missed: set[str] = set()
        self._of = {
            kind: [i for i, m in enumerate(matrices) if kind == "update" or not m.is_computed]
            for what, kind in _KINDS.items()
            if what in watch
        }
        self.skipped = [
            Skipped(f"{matrix.name}[gradient]", matrix.shape, _NO_GRADIENT)
            for matrix in matrices
            if "gradients" in watch and matrix.is_computed
        ]
        """Matrices that have no gradient, with the reason."""
        changed = [_changed(matrices[i], kind) for kind, own in self._of.items() for i in own]
        small = [matrix for matrix in changed if matrix.rank <= DIRECT_SIDE]
        few = [matrix for matrix in changed if matrix.rank > DIRECT_SIDE]
        self._changed = changed
        self._randomized = RandomizedSolver(few, _TRIPLETS, generator)
        self._asked = [
            Asked(small, ExactSolver(small, self.subspace, [True] * len(small))),
            Asked(few, self._randomized),
        ]

    @property
    def described(self) -> list[str]:
        """Lines for `explain`: what gradients are, where they are watched."""
        if not self._of.get("gradient"):
            return []
        origin = (
            "as they are: multiplied by a loss scale before GradScaler.unscale_ or step "
            "(grad_scale tells), clipped after clip_grad_norm_"
            if self._grad_scale is None
            else "and divided by the loss scale that grad_scale tells: right before "
            "GradScaler.unscale_ and step, which divide them too; after these leave it out"
        )
        return [f"gradients are read when step is called, {origin}; none after zero_grad"]

    @property
    def matrices(self) -> list[Matrix]:
        """The updates and gradients that `measure` makes rows of."""
        return self._changed

    def memory(self) -> dict[str, int]:
        """Weight -> bytes of its copy, which updates need."""
        if "update" not in self._of:
            return {}
        return {m.name: m.nbytes // m.dtype.itemsize * m.result_bytes for m in self._matrices}

    def measure(
        self, svds: Sequence[SVD], readings: Readings
    ) -> tuple[dict[str, MatrixRow], dict[str, Array]]:
        """Rows by name, and the overlaps with the weights.

        Args:
            svds: of the weights as they are now.
            readings: these weights.

        Returns:
            The rows, and by name (2,): `spectral_kernels.subspace_overlap` of the leading
            (at most 10) left vectors of the change with those of the weight, and of the right
            ones; of a change or weight of lower rank, as many as that. NaN where a change is
            zero or not known.
        """
        if not self._changed:
            return {}, {}
        read, reasons = self._read(readings)
        changes: dict[str, SVD] = {}
        rows: dict[str, MatrixRow] = {}
        taken = dict(zip((matrix.name for matrix in self._changed), read, strict=True))
        for asked in self._asked:
            if asked.matrices:
                names = [matrix.name for matrix in asked.matrices]
                solved = asked.solver.update([taken[name] for name in names])
                changes.update(zip(names, (x.svd for x in solved), strict=True))
                rows |= _rows(asked, solved)
        tell_reasons(rows, reasons)
        names = [matrix.name for matrix in self._changed]
        weights = [svds[i] for own in self._of.values() for i in own]
        floors = [self._rounding(kind, i) for kind, own in self._of.items() for i in own]
        overlap = _overlaps([changes[name] for name in names], weights, floors, self.subspace)
        return {name: rows[name] for name in names}, dict(zip(names, overlap, strict=True))

    def remember(self, readings: Readings) -> None:
        """Take the weights as they are now for those before the next update.

        Of one that cannot be read, those of the last step at which it could be stay.
        """
        if "update" not in self._of:
            return
        unread = set(readings.reasons)
        self._missed = unread if self._before is None else self._missed & unread
        places = [None] * len(self._matrices) if self._before is None else self._before
        self._before = [
            remembered(now, place) if place is None or matrix.name not in readings.reasons
            else place
            for matrix, now, place in zip(self._matrices, readings.last, places, strict=False)
        ]  # fmt: skip

    def state(self) -> dict[str, Any]:
        """The part of a monitor's state: the weights of the last measured step, and warm starts."""
        before = [] if self._before is None else [remembered(x, None) for x in self._before]
        return {
            "before": [list(x) if isinstance(x, Decomposed) else x for x in before],
            "start": self._randomized.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the weights of a state.

        Raises:
            ValueError: a state of other weights, or of a monitor that did not watch updates.
        """
        before = [x if isinstance(x, Tensor) else Decomposed(*x) for x in state["before"]]
        expected = [matrix.shape for matrix in self._matrices] if "update" in self._of else []
        if before and [shape_of(x) for x in before] != expected:
            raise ValueError(
                f"state: weights before the next update of {len(before)} matrices, expected "
                f"{len(expected)} (watch='updates' differs?)"
            )
        self._before = [remembered(x, None) for x in before] or None
        self._randomized.load_state(state["start"])

    def _rounding(self, kind: str, i: int) -> float:
        """The share of sigma_1 of a weight that rounding alone can make up of its change.

        A stored weight is rounded at every update: by a matrix of independent entries, up to
        eps |w| / 2 each, whose 2-norm is below eps sigma_1 of the weight. Gradients are not.
        """
        dtype = self._matrices[i].dtype
        # One that has no numbers now, such as an integer in its place, has no update either.
        is_known = kind == "update" and dtype.is_floating_point
        return 2 * torch.finfo(dtype).eps if is_known else 0.0

    def _read(self, readings: Readings) -> tuple[list[Kept], dict[str, str]]:
        """Updates, then gradients, NaN where there are none; and why there are none."""
        read: list[Kept] = []
        reasons: dict[str, str] = {}
        for i in self._of.get("update", []):
            now, weight = _detached(readings.last[i]), self._matrices[i].name
            if weight in readings.reasons:
                reasons[f"{weight}[update]"] = readings.reasons[weight]
            elif self._before is None or weight in self._missed:
                reasons[f"{weight}[update]"] = _NO_UPDATE
            read.append(unknown(now) if self._before is None else difference(now, self._before[i]))
        gradients = self._changed[len(read) :]
        scale = self._grad_scale() if self._grad_scale is not None and gradients else 1.0
        for i, gradient in zip(self._of.get("gradient", []), gradients, strict=True):
            try:
                if gradient.get() is None:
                    raise UnreadableMatrixError(gradient.name, _GRADIENT_IS_NONE)
                read.append(_unscaled(gradient.view().detach(), scale))
            except UnreadableMatrixError as error:
                reasons[gradient.name] = error.reason
                read.append(unknown(_detached(readings.last[i])))
        return read, reasons


def _rows(asked: Asked, solved: Sequence[Solved]) -> Mapping[str, MatrixRow]:
    derived = Derived(asked, solved, solved[0].bounds.new_zeros(SCALARS))
    derived.run()
    unpacking = Unpacking(asked, derived.layout, 0, is_now=False)
    return unpacking.rows(derived.block.cpu().numpy())


def grad_scale_of(given: Any) -> Callable[[], float] | None:
    """What tells the factor that gradients have when they are read; None where nobody has said.

    Args:
        given: a number, a function without arguments, or what has ``get_scale()`` as
            ``torch.amp.GradScaler`` does.

    Raises:
        ValueError: anything else, or a number that is not above 0.
    """
    tell = getattr(given, "get_scale", given)
    if tell is None:
        return None
    if callable(tell):
        return lambda: float(tell())
    if isinstance(tell, bool) or not isinstance(tell, (int, float)) or not 0 < tell < math.inf:
        raise ValueError(
            "grad_scale: expected a number above 0, a function that returns one, a GradScaler or "
            f"None, got {given!r}"
        )
    return lambda: float(tell)


def _unscaled(gradient: Tensor, scale: float) -> Tensor:
    # In float32: what is left of a float16 gradient may be below its smallest number.
    return gradient if scale == 1.0 else gradient.to(result_dtype(gradient.dtype)) / scale


def _changed(matrix: Matrix, kind: str) -> Matrix:
    """The update or the gradient of a weight, as a matrix of the same shape."""
    if kind == "gradient":
        source, get = matrix.source, lambda: _grad_of(matrix)
    else:
        source, get = MatrixView(kind), lambda: None
    return dataclasses.replace(
        matrix,
        name=f"{matrix.name}[{kind}]",
        source=dataclasses.replace(source, kind=kind),
        get=get,
        # See `spectral_monitor.step.differences`.
        inner=None if matrix.inner is None else 2 * matrix.inner,
    )


def _grad_of(matrix: Matrix) -> Tensor | None:
    tensor = matrix.get()
    grad = tensor.grad if isinstance(tensor, Tensor) else None
    # An embedding with sparse=True has rows of a gradient.
    return grad.to_dense() if grad is not None and grad.layout != torch.strided else grad


def _detached(kept: Kept) -> Kept:
    if isinstance(kept, Decomposed):
        return Decomposed(*(x.detach() for x in kept))
    return kept.detach()


def _overlaps(
    changes: Sequence[SVD], weights: Sequence[SVD], floors: Sequence[float], k: int
) -> list[Array]:
    """(2,) for each: subspace overlap of at most k leading directions, left and right.

    Directions of values that are rounding alone are arbitrary, and left out: an update that
    touches three rows has three.
    """
    pairs, clusters, shares = [], [], []
    for a, b, floor in zip(changes, weights, floors, strict=True):
        width = min(k, a.Vh.shape[0], b.Vh.shape[0])
        wide = torch.promote_types(a.U.dtype, b.U.dtype)
        mine = _above(a, floor * b.S[:1], width).to(wide)
        theirs = _above(b, torch.zeros_like(b.S[:1]), width).to(wide)
        pairs += [
            (a.U[:, :width] * mine, b.U[:, :width].mT.to(wide) * theirs.unsqueeze(-1)),
            (a.Vh[:width].mT * mine, b.Vh[:width].to(wide) * theirs.unsqueeze(-1)),
        ]
        clusters += [torch.zeros(width, dtype=torch.int64, device=a.U.device)] * 2
        # The squared cosine is a sum over the width; 0 / 0 where nothing is known.
        shares.append(width / torch.minimum(mine.sum(), theirs.sum()))
    values = cluster_cosines_list(pairs, clusters)
    # One cluster holds all: every entry is the root of the overlap of the whole subspaces.
    sides = torch.stack([value[0] for value in values]).reshape(-1, 2).square()
    return list((sides * torch.stack(shares).unsqueeze(-1)).cpu().numpy())


def _above(svd: SVD, floor: Tensor, width: int) -> Tensor:
    """Which of the leading values are above rounding and above the floor (1,); NaN is not."""
    values: Tensor = svd.S
    rounding = default_rtol(svd.U.shape[0], svd.Vh.shape[1], values.dtype) * values[:1]
    return values[:width] > torch.maximum(rounding, floor.to(values))
