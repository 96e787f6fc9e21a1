"""Leading singular triplets by randomized subspace iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_kernels.entry import checks
from spectral_kernels.entry.arrays import Array, enter, to_tensor
from spectral_kernels.entry.readable import resolved_list
from spectral_kernels.entry.results import SVD
from spectral_kernels.rsvd.normals import Sketch, seed_from
from spectral_kernels.runtime import dispatch, schemas
from spectral_kernels.runtime.numerics import result_dtype

_rsvd = schemas.operator("rsvd")


def rsvd(
    A: Array | Sequence[Array],
    k: int | list[int] | tuple[int, ...],
    *,
    oversample: int = 8,
    power_iters: int = 2,
    generator: torch.Generator | None = None,
    start: SVD | Array | Sequence[SVD | Array | None] | None = None,
    check_finite: bool = False,
) -> SVD | list[SVD]:
    """Return the k leading singular triplets of A.

    Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review 53 (2011),
    Algorithms 4.4 and 5.1. A is read 2 + 2 * power_iters times, in products with k + oversample
    columns.

    Args:
        A: (..., m, n) as for ``svd``; a list or tuple gives a list.
        k: how many triplets, 1 <= k <= min(m, n); one integer, or one for each matrix of a list.
        oversample: further columns of the sketch, capped at min(m, n) - k. Eight to ten make a
            miss improbable; each costs one column in every product.
        power_iters: subspace iterations. Each divides the weight of the unwanted directions by
            (sigma_k / sigma_{k+1})^2; two are needed where the spectrum falls slowly, none where
            it falls fast.
        generator: of the seed of the random columns, for NumPy input too. None stands for one
            fixed seed: the same call gives the same result, and torch's global random state is
            neither read nor moved. From a seed the columns are the same numbers on every device
            and backend. A generator on a GPU costs a synchronisation, by which the seed is read.
        start: a block (..., n, l) or an earlier SVD of a matrix near A, whose right vectors are
            taken (a warm start). Random columns fill up to k + oversample.
        check_finite: as for ``svd``.

    Returns:
        ``SVD(U (..., m, k), S (..., k), Vh (..., k, n))``. Declared non-differentiable.

    Raises:
        TypeError: integer or complex dtype, k not an integer.
        ValueError: k or the start out of range, fewer than two dimensions, mixed devices.

    Example:
        >>> U, S, Vh = sk.rsvd(np.diag([5.0, 3.0, 1.0, 0.5]), 2)
        >>> S.round(6)
        array([5., 3.])
        >>> U.shape, Vh.shape
        ((4, 2), (2, 4))
    """
    tensors, leave = enter(A)
    checks.check_matrices(tensors)
    checks.check_count(oversample, "oversample", 0)
    checks.check_count(power_iters, "power_iters", 0)
    single = not isinstance(A, (list, tuple))
    if check_finite:
        checks.check_finite(tensors, "A", single=single)
    ks = _ranks(k, tensors, single)
    blocks = _blocks(start, tensors, single)
    starts, widths = start_columns(tensors, ks, blocks, oversample)
    seed = seed_from(generator)
    parts = _rsvd(tensors, starts, ks, widths, seed, power_iters) if tensors else ([], [], [])
    result: SVD | list[SVD] = leave([SVD(*usv) for usv in zip(*parts, strict=True)])
    return result


def rsvd_list(
    matrices: list[Tensor],
    k: list[int],
    *,
    oversample: int = 8,
    power_iters: int = 2,
    generator: torch.Generator | None = None,
    start: list[Tensor | None] | None = None,
) -> list[SVD]:
    """Return the leading triplets of many tensors on one device, as ``svd_list`` does SVDs.

    ``k`` holds one rank per matrix, ``start`` one block (..., n, l) or None per matrix.
    """
    if not matrices:
        return []
    with torch.no_grad():
        matrices = resolved_list(matrices)
        blocks = start or [None] * len(matrices)
        starts, widths = start_columns(matrices, k, blocks, oversample)
        return _solve(matrices, starts, k, widths, seed_from(generator), power_iters)


def start_columns(
    matrices: list[Tensor], ks: list[int], blocks: Sequence[Tensor | None], oversample: int
) -> tuple[list[Tensor], list[int]]:
    """Return the given columns (..., n, given) of every start block and the width it shall have.

    min(k + oversample, r), or as many as are given where those are more.
    """
    starts, widths = [], []
    for A, k, block in zip(matrices, ks, blocks, strict=True):
        *batch, m, n = A.shape
        if block is None:
            block = A.new_empty((*batch, n, 0))
        starts.append(block.to(result_dtype(A.dtype)))
        widths.append(max(min(k + oversample, m, n), block.shape[-1]))
    return starts, widths


def _ranks(k: int | list[int] | tuple[int, ...], tensors: list[Tensor], single: bool) -> list[int]:
    several = isinstance(k, (list, tuple))
    ks = list(k) if isinstance(k, (list, tuple)) else [k] * len(tensors)
    if len(ks) != len(tensors) or (single and several):
        raise ValueError(
            f"k has {len(ks)} values; expected one integer, or one for each of a list of A"
        )
    for rank, A, name in zip(ks, tensors, checks.names("A", len(ks), single), strict=True):
        checks.check_rank(rank, A, name)
    return ks


def _blocks(
    start: SVD | Array | Sequence[SVD | Array | None] | None, tensors: list[Tensor], single: bool
) -> list[Tensor | None]:
    if start is None:
        return [None] * len(tensors)
    if single:
        return [_block(start, tensors[0], "start")]
    if hasattr(start, "Vh") or not isinstance(start, (list, tuple)) or len(start) != len(tensors):
        raise ValueError(
            f"start is {type(start).__name__}; expected a list of {len(tensors)} SVDs, blocks "
            "or None, one for each matrix of A"
        )
    return [
        _block(x, A, f"start[{i}]") for i, (x, A) in enumerate(zip(start, tensors, strict=True))
    ]


def _block(start: SVD | Array | None, A: Tensor, name: str) -> Tensor | None:
    if start is None:
        return None
    block = to_tensor(start.Vh, f"{name}.Vh").mT if hasattr(start, "Vh") else to_tensor(start, name)
    checks.check_matrix(block, name)
    checks.check_devices(**{"A": A, name: block})
    *batch, m, n = A.shape
    r = min(m, n)
    if list(block.shape[:-1]) != [*batch, n] or not 1 <= block.shape[-1] <= r:
        raise ValueError(
            f"{name} has a block of shape {tuple(block.shape)}; expected "
            f"{(*batch, n)} + (l,) with 1 <= l <= {r} for A of shape {tuple(A.shape)}"
        )
    return block.detach()


def _solve(
    A: list[Tensor],
    start: list[Tensor],
    k: list[int],
    width: list[int],
    seed: Tensor,
    power_iters: int,
) -> list[SVD]:
    sketches = list(map(Sketch, A, start, k, width, range(len(A))))
    module = dispatch.backend("rsvd", A[0].device.type)
    results: list[SVD] = module.rsvd(sketches, int(seed), power_iters)
    return results


def _rsvd_kernel(
    A: list[Tensor], *arguments: Any
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    results = _solve(A, *arguments) if A else []
    return [x.U for x in results], [x.S for x in results], [x.Vh for x in results]


schemas.implement("rsvd", _rsvd_kernel)
schemas.not_differentiable("rsvd", "detach its input")
