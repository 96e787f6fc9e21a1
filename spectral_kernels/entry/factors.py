"""Matrices that may be factors U Sigma Vh: in as their cores, out as the results of the whole.

What a function does with matrices it does with cores, which have the same singular values. Shapes
(m, n) are those of the whole matrix, which ranks are normalised with, and singular vectors are
lifted on the way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from spectral_kernels.entry import checks
from spectral_kernels.entry.arrays import Array, Leave, enter, enter_together
from spectral_kernels.entry.core.op import Core, cores, lift
from spectral_kernels.entry.core.overflow import scaled_down, scaled_up
from spectral_kernels.entry.results import SVD, Decomposed
from spectral_kernels.runtime.torch_internals import transformed


@dataclass
class Matrices:
    """One argument of matrices.

    ``tensors``: (..., m, n), or the core (..., p, q) of a decomposed matrix. ``cores`` and
    ``factors`` are those of the decomposed ones, by their places, and ``vectors`` how many leading
    vectors of each are lifted, None for all. ``exponents`` (...): where a core is beyond the range
    of its type, ``tensors`` and ``cores`` have it over so many powers of two, and numbers of it go
    through `whole`, `bounded` or `lifted`. ``leave`` as of `arrays.enter`.
    """

    tensors: list[Tensor]
    leave: Leave
    single: bool
    cores: dict[int, Core] = field(default_factory=dict)
    factors: dict[int, Decomposed] = field(default_factory=dict)
    vectors: dict[int, int | None] = field(default_factory=dict)
    exponents: dict[int, Tensor] = field(default_factory=dict)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """(..., m, n) of the whole matrices."""
        shapes = [tuple(x.shape) for x in self.tensors]
        for i, x in self.factors.items():
            shapes[i] = (*x.U.shape[:-1], x.Vh.shape[-1])
        return shapes

    @property
    def sides(self) -> list[tuple[int, int]]:
        """(m, n) of the whole matrices."""
        return [(shape[-2], shape[-1]) for shape in self.shapes]

    @property
    def ranks(self) -> list[int | None]:
        """k of the decomposed ones, None elsewhere."""
        places = range(len(self.tensors))
        return [self.factors[i].U.shape[-1] if i in self.factors else None for i in places]

    def whole(self, numbers: Sequence[Tensor]) -> list[Tensor]:
        """Return values (..., r) or norms (...) of whole matrices from those of ``tensors``."""
        whole = list(numbers)
        for i, exponent in self.exponents.items():
            whole[i] = scaled_up(whole[i], exponent)
        return whole

    def bounded(
        self, bounds: Sequence[Tensor], values: Sequence[Tensor], share: float = 1.0
    ) -> list[Tensor]:
        """Return bounds of errors of whole matrices from those of ``tensors``.

        Args:
            bounds: (..., r), one for each value, or (...).
            values: (..., r) of ``tensors``. Nothing is known of those beyond their range.
            share: what of a core's error comes on top.
        """
        whole = list(bounds)
        for i, core in self.cores.items():
            error = core.error.unsqueeze(-1) if bounds[i].dim() > core.error.dim() else core.error
            whole[i] = bounds[i] + share * error
        for i, exponent in self.exponents.items():
            infinite = scaled_up(values[i], exponent).isinf()
            if bounds[i].dim() == exponent.dim():
                infinite = infinite.any(dim=-1)
            whole[i] = scaled_up(whole[i], exponent).masked_fill(infinite, float("inf"))
        return whole

    def lifted(self, svds: Sequence[SVD], out: Sequence[SVD] | None = None) -> list[SVD]:
        """Return the decompositions of whole matrices from those of ``tensors``.

        Args:
            svds: one for each matrix; those of matrices that are not decomposed are handed on.
            out: what an earlier call returned, to be overwritten where dtype and shape are still
                those.
        """
        lifted = list(svds)
        for i, exponent in self.exponents.items():
            lifted[i] = svds[i]._replace(S=scaled_up(svds[i].S, exponent))
        for i, core in self.cores.items():
            few = lifted[i]
            count = few.S.shape[-1] if self.vectors[i] is None else self.vectors[i]
            few = SVD(few.U[..., :count], few.S, few.Vh[..., :count, :])
            place = None if out is None or not _fits(out[i], few) else out[i]
            lifted[i] = lift(core, few, place)
        return lifted


def _fits(place: SVD, few: SVD) -> bool:
    """Whether an SVD has the type and the number of vectors of another one."""
    same: bool = place.S.dtype == few.S.dtype and place.Vh.shape[-2] == few.Vh.shape[-2]
    return same


def is_single(A: Any) -> bool:
    """Whether A is one matrix: a decomposed one is a tuple, too."""
    return not isinstance(A, (list, tuple)) or isinstance(A, Decomposed)


def enter_matrices(
    A: Array | Decomposed | Sequence[Array | Decomposed],
    *,
    vectors: int | Sequence[int] | None = 0,
    check_finite: bool = False,
    check: bool = True,
    traced: bool = True,
) -> Matrices:
    """Return A as tensors to work on, see ``Matrices``.

    Args:
        A: (..., m, n) as for ``svd``; a list or tuple is a ragged batch.
        vectors: how many leading vectors of each decomposed matrix will be lifted, one number or
            one for every matrix of A; None for all.
        check_finite: raise on NaN or Inf.
        check: False leaves matrices unchecked, but not factors.
        traced: False refuses what has no values, see `readable.resolved`.

    Raises:
        TypeError: integer or complex dtype, or not an array, or a tensor that keeps its values
            elsewhere.
        ValueError: fewer than two dimensions, factors that do not chain, mixed devices or kinds,
            a tensor without values, NaN/Inf with ``check_finite``, or not as many ``vectors`` as
            matrices.
        RuntimeError: a tangent of forward-mode differentiation.
    """
    single = is_single(A)
    given: Sequence[Any] = [A] if single else A
    if isinstance(vectors, Sequence) and len(vectors) != len(given):
        raise ValueError(f"vectors has {len(vectors)} entries; expected {len(given)}, as A has")
    if any(isinstance(x, Decomposed) for x in given):
        matrices = _enter_mixed(given, single, check_finite, traced)
        for i in matrices.factors:
            matrices.vectors[i] = vectors[i] if isinstance(vectors, Sequence) else vectors
        _solve_for_cores(matrices)
    else:
        tensors, leave = enter(A, traced=traced)
        matrices = Matrices(tensors, leave, single)
    factors = [part for x in matrices.factors.values() for part in x]
    _check_no_tangents([*matrices.tensors, *factors])
    if check:
        checks.check_matrices(matrices.tensors)
    if check_finite:
        checks.check_finite(matrices.tensors, "A", single=single)
    return matrices


def _check_no_tangents(tensors: Sequence[Tensor]) -> None:
    """Refuse forward mode, of which spectra have none: their derivative would silently be zero."""
    unpack: Any = forward_ad.unpack_dual
    if transformed() and any(unpack(x).tangent is not None for x in tensors):
        raise RuntimeError(
            "spectra have no derivative in forward mode (torch.func.jvp, jacfwd, dual tensors); "
            "expected reverse mode, as torch.autograd.grad, or arguments without tangents"
        )


def _enter_mixed(given: Sequence[Any], single: bool, check_finite: bool, traced: bool) -> Matrices:
    """Return matrices whose decomposed ones still have U in place of their cores."""
    tensors: list[Tensor] = []
    leaves: list[Leave] = []
    factors: dict[int, Decomposed] = {}
    for i, (x, name) in enumerate(zip(given, checks.names("A", len(given), single), strict=True)):
        if isinstance(x, Decomposed):
            (x,), leave_one = enter_factors(x, of=f" of {name}", traced=traced)
            if x.Sigma.dim() < x.U.dim():
                x = x._replace(Sigma=torch.diag_embed(x.Sigma))
            if check_finite:
                _check_finite_factors(x, name)
            factors[i] = x
            tensors.append(factors[i].U)
        else:
            (tensor,), leave_one = enter(x, name, traced=traced)
            tensors.append(tensor)
        leaves.append(leave_one)
    checks.check_devices(**{f"A[{i}]": tensor for i, tensor in enumerate(tensors)})

    def leave(results: Sequence[Any]) -> Any:
        parts = [leave_one([x]) for leave_one, x in zip(leaves, results, strict=True)]
        return parts[0] if single else parts

    return Matrices(tensors, leave, single, factors=factors)


def _solve_for_cores(matrices: Matrices) -> None:
    """Put the cores where they belong, with gradients where the factors want some."""
    factors = matrices.factors
    trained = [any(part.requires_grad for part in x) for x in factors.values()]
    wanted = [torch.is_grad_enabled() and x for x in trained]
    bases = [matrices.vectors[i] != 0 or x for i, x in zip(factors, wanted, strict=True)]
    first = cores(list(factors.values()), vectors=bases)
    for (i, x), core, basis, with_gradient in zip(
        factors.items(), first, bases, wanted, strict=True
    ):
        smaller = scaled_down(x, core)
        if smaller is not None:
            x, matrices.exponents[i] = smaller
            (core,) = cores([x], vectors=basis)
        matrices.cores[i] = core
        matrices.tensors[i] = _with_gradient(core, x) if with_gradient else core.matrix


def spread(U: Any, Sigma: Any, Vh: Any) -> tuple[Any, Any, Any]:
    """Return three arguments, or three lists, of what may be a ``Decomposed`` or a list of them.

    Raises:
        TypeError: neither, or both at once.
    """
    if Sigma is not None and Vh is not None:
        return U, Sigma, Vh
    if Sigma is not None or Vh is not None:
        raise TypeError("factors are given in part; expected U, Sigma and Vh, or a Decomposed")
    if isinstance(U, Decomposed):
        return U.U, U.Sigma, U.Vh
    if isinstance(U, (list, tuple)) and all(isinstance(x, Decomposed) for x in U):
        return [x.U for x in U], [x.Sigma for x in U], [x.Vh for x in U]
    raise TypeError(
        f"factors are a {type(U).__name__}; expected U, Sigma and Vh, a Decomposed or a list of "
        "those"
    )


def enter_factors(
    U: Any, Sigma: Any = None, Vh: Any = None, *, of: str = "", traced: bool = True
) -> tuple[list[Decomposed], Leave]:
    """Return checked factors as tensors and the way back to their kind of array.

    Args:
        U: (..., m, k), or a ``Decomposed`` in place of all three; lists or tuples for many.
        Sigma: (..., k, k), or (..., k) for a diagonal.
        Vh: (..., k, n).
        of: what follows their names in messages.
        traced: as for `enter_matrices`.

    Raises:
        TypeError, ValueError: as of `spread`, `arrays.enter_together` and `checks.check_factors`.
    """
    parts = zip(Decomposed._fields, spread(U, Sigma, Vh), strict=True)
    entered, leave = enter_together(**{f"{name}{of}": x for name, x in parts}, traced=traced)
    factors = [Decomposed(*x) for x in zip(*entered, strict=True)]
    for x in factors:
        checks.check_factors(*x, of=of)
    return factors, leave


def _check_finite_factors(x: Decomposed, name: str) -> None:
    for part, factor in zip(x, Decomposed._fields, strict=True):
        checks.check_finite([part], f"{factor} of {name}", single=True)


def _with_gradient(core: Core, x: Decomposed) -> Tensor:
    """Return the core's matrix with a gradient to the factors.

    It is (W_u^T U) Sigma (Vh W_v) for fixed W_u and W_v: of all that the core's own derivative has,
    what moves singular values, since d sigma_i = u_i^T d(U Sigma Vh) v_i.
    """
    U, Sigma, Vh = (part.double() for part in x)
    matrix = (core.left.double().mT @ U) @ Sigma @ (Vh @ core.right.double().mT)
    # Its value, but for its rounding.
    moves: Tensor = (matrix - matrix.detach()).to(core.matrix.dtype)
    return core.matrix + moves
