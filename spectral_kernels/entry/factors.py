"""Matrices that may be decomposed ones: in as their cores, out as the results of the whole.

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
from spectral_kernels.entry.core import Core, cores, lift
from spectral_kernels.entry.core.overflow import scaled_down, scaled_up
from spectral_kernels.entry.readable import resolved
from spectral_kernels.entry.results import SVD, Decomposed
from spectral_kernels.runtime import schemas


@dataclass
class Matrices:
    """One argument of matrices.

    ``tensors``: (..., m, n), or the core (..., p, q) of a decomposed matrix. ``cores`` and
    ``factors`` are those of the decomposed ones, by their places. ``exponents`` (...): where a core
    is beyond the range of its type, ``tensors`` and ``cores`` have it over so many powers of two,
    and what is found of it goes through `values` or `lifted`. ``leave`` as of `arrays.enter`.
    """

    tensors: list[Tensor]
    leave: Leave
    single: bool
    cores: dict[int, Core] = field(default_factory=dict)
    factors: dict[int, Decomposed] = field(default_factory=dict)
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

    def values(self, found: Sequence[Tensor]) -> list[Tensor]:
        """Return the singular values (..., r) of whole matrices from those of ``tensors``."""
        whole = list(found)
        for i, exponent in self.exponents.items():
            whole[i] = scaled_up(whole[i], exponent)
        return whole

    def lifted(self, found: Sequence[SVD], out: Sequence[SVD] | None = None) -> list[SVD]:
        """Return the decompositions of whole matrices from those of ``tensors``.

        Args:
            found: one for each matrix; those of matrices that are not decomposed are handed on.
            out: what an earlier call returned, to be overwritten where its dtype is still that.
        """
        lifted = list(found)
        for i, exponent in self.exponents.items():
            lifted[i] = found[i]._replace(S=scaled_up(found[i].S, exponent))
        for i, core in self.cores.items():
            place = None if out is None or out[i].S.dtype != found[i].S.dtype else out[i]
            lifted[i] = lift(core, lifted[i], place)
        return lifted


def is_single(A: Any) -> bool:
    """Whether A is one matrix: a decomposed one is a tuple, too."""
    return not isinstance(A, (list, tuple)) or isinstance(A, Decomposed)


def enter_matrices(
    A: Array | Decomposed | Sequence[Array | Decomposed],
    *,
    vectors: bool = False,
    check_finite: bool = False,
    check: bool = True,
    traced: bool = True,
) -> Matrices:
    """Return A as tensors to work on, see ``Matrices``.

    Args:
        A: (..., m, n) as for ``svd``; a list or tuple is a ragged batch.
        vectors: whether results will be lifted.
        check_finite: raise on NaN or Inf.
        check: False leaves matrices unchecked, but not factors.
        traced: False refuses what has no values, see `readable.resolved`.

    Raises:
        TypeError: integer or complex dtype, or not an array, or a tensor that keeps its values
            elsewhere.
        ValueError: fewer than two dimensions, factors that do not chain, mixed devices or kinds,
            a tensor without values, or NaN/Inf with ``check_finite``.
        RuntimeError: a tangent of forward-mode differentiation.
    """
    single = is_single(A)
    given: Sequence[Any] = [A] if single else A
    if any(isinstance(x, Decomposed) for x in given):
        matrices = _enter_mixed(given, single, check_finite, traced)
        _find_cores(matrices, vectors)
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
    if schemas.transformed() and any(unpack(x).tangent is not None for x in tensors):
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
            factors[i], leave_one = _enter_factors(x, name, check_finite, traced)
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


def _find_cores(matrices: Matrices, vectors: bool) -> None:
    """Put the cores where they belong, with gradients where the factors want some."""
    factors = matrices.factors
    trained = [any(part.requires_grad for part in x) for x in factors.values()]
    wanted = [torch.is_grad_enabled() and x for x in trained]
    found = cores(list(factors.values()), vectors=[vectors or x for x in wanted])
    for (i, x), core, with_gradient in zip(factors.items(), found, wanted, strict=True):
        smaller = scaled_down(x, core)
        if smaller is not None:
            x, matrices.exponents[i] = smaller
            (core,) = cores([x], vectors=vectors or with_gradient)
        matrices.cores[i] = core
        matrices.tensors[i] = _with_gradient(core, x) if with_gradient else core.matrix


def _enter_factors(
    x: Decomposed, name: str, check_finite: bool, traced: bool
) -> tuple[Decomposed, Leave]:
    """Return the factors as tensors, the core dense, and the way back to their kind of array."""
    parts, leave = enter_together(U=x.U, Sigma=x.Sigma, Vh=x.Vh)
    U, Sigma, Vh = (
        resolved(part, f"{field} of {name}", traced=traced)
        for field, (part,) in zip(Decomposed._fields, parts, strict=True)
    )
    checks.check_factors(U, Sigma, Vh, of=f" of {name}")
    if check_finite:
        for part, told in zip((U, Sigma, Vh), Decomposed._fields, strict=True):
            tensor = part.unsqueeze(-1) if part.dim() < U.dim() else part
            checks.check_finite([tensor], f"{told} of {name}", single=True)
    if Sigma.dim() < U.dim():
        Sigma = torch.diag_embed(Sigma)
    return Decomposed(U, Sigma, Vh), leave


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
