"""Ranks and norms: entropy-based effective rank, stable rank, numerical rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from spectral_kernels.entry import checks
from spectral_kernels.entry.arrays import Array, Leave, enter
from spectral_kernels.entry.factors import Matrices, enter_matrices
from spectral_kernels.entry.results import METRICS, Decomposed, SpectralSummary
from spectral_kernels.rank.gradients import summarize_backward, summarize_setup
from spectral_kernels.rank.overflow import mend, rescaled, scaled
from spectral_kernels.rank.shapes import given_shapes
from spectral_kernels.runtime import dispatch, schemas
from spectral_kernels.runtime.numerics import default_rtol, result_dtype
from spectral_kernels.svd.op import singular_values, svdvals_list

_summarize = schemas.operator("summarize")
_svdvals_with_tables = schemas.operator("svdvals_with_tables")
_DEFAULT_RTOL = -1.0


def effective_rank(
    A: Array | Decomposed | Sequence[Array | Decomposed],
    *,
    form: Literal["entropy", "exponential"] = "entropy",
    normalized: bool = False,
    check_finite: bool = False,
) -> Array | list[Array]:
    """Return the entropy-based effective rank of A.

    With p = sigma / sum(sigma): "entropy" is -sum p ln p in nats (Yunis et al., "Approaching
    Deep Learning through the Spectral Dynamics of Weights", Eq. 1); "exponential" is exp of it
    (Roy, Vetterli, "The effective rank", EUSIPCO 2007).

    Args:
        A: (..., m, n) as for ``svd``; a list or tuple gives a list.
        form: "entropy" or "exponential".
        normalized: divide by r = min(m, n), Eq. 2 of Yunis et al.
        check_finite: raise on NaN or Inf instead of returning NaN.

    Returns:
        (...), 0 for a zero matrix. Differentiable with the values-only gradient; a value of
        exactly zero gets gradient 0, where the true one is infinite.

    Raises:
        ValueError: unknown ``form``, or as for ``svd``.
        TypeError: as for ``svd``.

    Example:
        >>> A = np.diag([1.0, 1.0, 1.0, 0.0])
        >>> round(float(sk.effective_rank(A, form="exponential")), 6)
        3.0
        >>> round(float(sk.effective_rank(A, normalized=True)), 6)  # ln(3) / 4
        0.274653
    """
    columns = {"entropy": "effective_rank", "exponential": "effective_rank_exp"}
    if form not in columns:
        raise ValueError(f"form is {form!r}; expected 'entropy' or 'exponential'")
    return _metric(A, columns[form], normalized=normalized, check_finite=check_finite)


def stable_rank(
    A: Array | Decomposed | Sequence[Array | Decomposed],
    *,
    normalized: bool = False,
    check_finite: bool = False,
) -> Array | list[Array]:
    """Return ||A||_F^2 / ||A||_2^2 (Rudelson, Vershynin, J. ACM 54, 2007); 0 for a zero matrix.

    Args:
        A: (..., m, n) as for ``svd``; a list or tuple gives a list.
        normalized: divide by r = min(m, n).
        check_finite: raise on NaN or Inf instead of returning NaN.

    Returns:
        (...). Differentiable with the values-only gradient.

    Raises:
        TypeError, ValueError: as for ``svd``.

    Example:
        >>> round(float(sk.stable_rank(np.diag([2.0, 1.0, 1.0]))), 6)
        1.5
    """
    return _metric(A, "stable_rank", normalized=normalized, check_finite=check_finite)


def numerical_rank(
    A: Array | Decomposed | Sequence[Array | Decomposed],
    *,
    rtol: float | None = None,
    check_finite: bool = False,
) -> Array | list[Array]:
    """Return how many singular values exceed rtol * sigma_1.

    Args:
        A: (..., m, n) as for ``svd``; a list or tuple gives a list.
        rtol: relative threshold; max(m, n) * eps of the dtype of the computation if None.
        check_finite: raise on NaN or Inf instead of returning NaN.

    Returns:
        (...), floating, so that a matrix with NaN inside has the rank NaN.

    Raises:
        ValueError: negative ``rtol``, or as for ``svd``.
        TypeError: as for ``svd``.

    Example:
        >>> A = np.diag([1.0, 0.1, 1e-20])
        >>> float(sk.numerical_rank(A)), float(sk.numerical_rank(A, rtol=0.5))
        (2.0, 1.0)
    """
    return _metric(A, "numerical_rank", rtol=_threshold(rtol), check_finite=check_finite)


def feature_rank(
    H: Array | Sequence[Array], *, rtol: float | None = None, check_finite: bool = False
) -> Array | list[Array]:
    """Return the numerical rank of the covariance of activations.

    Fan, Pascanu, Jaggi, "Deep Grokking", 2024: the singular values of the covariance above
    features * eps times the largest. They are the squared singular values of the centred
    activations, so the covariance is not formed: sigma_i > sqrt(rtol) * sigma_1.

    Computed in float64, with float64's eps, whatever the dtype of ``H``, as the authors do: by
    float32's eps a fresh network has layers of low rank already. Values that were rounded before
    they come here, to float16 or around a large mean, have the rank of their rounding errors.

    Args:
        H: (..., samples, features) as for ``svd``; a list or tuple gives a list.
        rtol: threshold on the covariance's values; features * 2.2e-16 if None.
        check_finite: raise on NaN or Inf instead of returning NaN.

    Returns:
        (...), floating; 0 where all samples are equal.

    Raises:
        ValueError: negative ``rtol``, or as for ``svd``.
        TypeError: as for ``svd``.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> H = rng.standard_normal((100, 2)) @ rng.standard_normal((2, 8))
        >>> float(sk.feature_rank(H))
        2.0
    """
    tensors, leave = enter(H, "H")
    checks.check_matrices(tensors, "H")
    if check_finite:
        checks.check_finite(tensors, "H", single=not isinstance(H, (list, tuple)))
    threshold = _threshold(rtol)
    return leave([_feature_rank(x, threshold) for x in tensors])


def spectral_summary(
    A: Array | Decomposed | Sequence[Array | Decomposed], *, check_finite: bool = False
) -> SpectralSummary | list[SpectralSummary]:
    """Return all singular values, ranks and norms of A from one decomposition and one pass.

    Args:
        A: (..., m, n) as for ``svd``; a list or tuple gives a list.
        check_finite: raise on NaN or Inf instead of returning NaN.

    Returns:
        ``SpectralSummary``; every field but the numerical rank is differentiable with the
        values-only gradient.

    Raises:
        TypeError, ValueError: as for ``svd``.

    Example:
        >>> summary = sk.spectral_summary(np.diag([2.0, 1.0]))
        >>> round(float(summary.stable_rank), 6), round(float(summary.nuclear_norm), 6)
        (1.25, 3.0)
    """
    matrices = enter_matrices(A, check_finite=check_finite)
    spectra, tables = _spectra_and_tables(matrices, _DEFAULT_RTOL)
    return _leave_summaries(spectra, tables, matrices.leave)


def summarize_singular_values(
    S: Array | Sequence[Array],
    shape: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
) -> SpectralSummary | list[SpectralSummary]:
    """Return the summary of matrices whose singular values are known already.

    Args:
        S: (..., r) singular values >= 0, descending; a list or tuple gives a list.
        shape: (m, n) of the matrix, which sets the threshold of the numerical rank; for a list
            of spectra one shape for all or a list of shapes. (r, r) if None.

    Returns:
        ``SpectralSummary`` with ``S`` (in float32 or float64) as its singular values.

    Raises:
        TypeError: integer or complex dtype.
        ValueError: S has no dimension, or min(shape) < r.

    Example:
        >>> summary = sk.summarize_singular_values(np.array([2.0, 1.0, 0.0]), shape=(5, 3))
        >>> round(float(summary.stable_rank), 6), float(summary.numerical_rank)
        (1.25, 2.0)
    """
    tensors, leave = enter(S, "S")
    for tensor, name in zip(
        tensors, checks.names("S", len(tensors), not isinstance(S, (list, tuple))), strict=True
    ):
        checks.check_dtype(tensor, name)
        if tensor.dim() < 1:
            raise ValueError(f"{name} has shape (); expected at least one dimension (..., r)")
    if tensors:
        checks.check_devices(**{f"S[{i}]": tensor for i, tensor in enumerate(tensors)})
    spectra = [x.to(result_dtype(x.dtype)) for x in tensors]
    tables = _differentiable_tables(spectra, given_shapes(shape, tensors), _DEFAULT_RTOL)
    return _leave_summaries(spectra, tables, leave)


def _sides(A: Tensor) -> tuple[int, int]:
    return A.shape[-2], A.shape[-1]


def _threshold(rtol: float | None) -> float:
    if rtol is None:
        return _DEFAULT_RTOL
    if not rtol >= 0:
        raise ValueError(f"rtol is {rtol!r}; expected a number >= 0 or None")
    return float(rtol)


def _metric(
    A: Array | Decomposed | Sequence[Array | Decomposed],
    column: str,
    *,
    rtol: float = _DEFAULT_RTOL,
    normalized: bool = False,
    check_finite: bool = False,
) -> Array | list[Array]:
    matrices = enter_matrices(A, check_finite=check_finite)
    index = METRICS.index(column)
    values = [
        table[..., index].to(S.dtype)
        for S, table in zip(*_spectra_and_tables(matrices, rtol), strict=True)
    ]
    if normalized:
        values = [x / max(min(sides), 1) for x, sides in zip(values, matrices.sides, strict=True)]
    return matrices.leave(values)


def _feature_rank(H: Tensor, rtol: float) -> Tensor:
    m, n = _sides(H)
    if rtol < 0:
        rtol = default_rtol(n, n, torch.float64)
    wide = H.double()
    if H.dtype == torch.float64:
        # Sums and norms of large numbers overflow; a rank does not change with the scale.
        wide, _ = scaled(wide)
    # The mean of equal numbers may be another number; that of zeros is not.
    wide = wide - wide[..., :1, :]
    spectra = singular_values([wide - wide.mean(dim=-2, keepdim=True)])
    table = _differentiable_tables(spectra, [(m, n)], math.sqrt(rtol))[0]
    return table[..., METRICS.index("numerical_rank")].to(result_dtype(H.dtype))


def _leave_summaries(
    spectra: list[Tensor], tables: list[Tensor], leave: Leave
) -> SpectralSummary | list[SpectralSummary]:
    summaries = [
        SpectralSummary(S, *table.to(S.dtype).unbind(-1))
        for S, table in zip(spectra, tables, strict=True)
    ]
    result: SpectralSummary | list[SpectralSummary] = leave(summaries)
    return result


def _spectra_and_tables(matrices: Matrices, rtol: float) -> tuple[list[Tensor], list[Tensor]]:
    """Return singular values and tables: in one pass where no gradient is asked for.

    Tables of decomposed matrices are of the sides of the whole matrix, which a solver of cores
    does not know.
    """
    tensors, sides = matrices.tensors, matrices.sides
    if not tensors:
        return [], []
    spectra, tables = _solve(tensors, sides, rtol)

    def solve(scaled: list[Tensor], which: list[int]) -> list[Tensor]:
        return _solve(scaled, [sides[i] for i in which], rtol)[1]

    tables = mend(tensors, spectra, tables, solve)
    for i, exponent in matrices.exponents.items():
        tables[i] = rescaled(tables[i], exponent)
    return matrices.whole(spectra), tables


def _solve(
    tensors: list[Tensor], sides: list[tuple[int, int]], rtol: float
) -> tuple[list[Tensor], list[Tensor]]:
    with_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if not with_gradient and sides == [_sides(x) for x in tensors]:
        values, tables = _svdvals_with_tables(tensors, rtol)
        return values, tables
    spectra = singular_values(tensors)
    return spectra, _differentiable_tables(spectra, sides, rtol)


def _differentiable_tables(
    spectra: list[Tensor], shapes: list[tuple[int, int]], rtol: float
) -> list[Tensor]:
    if not spectra:
        return []
    m, n = [m for m, _ in shapes], [n for _, n in shapes]
    tables: list[Tensor] = _summarize(spectra, m, n, rtol)
    return tables


def _tables(spectra: list[Tensor], shapes: list[tuple[int, int]], rtol: float) -> list[Tensor]:
    module = dispatch.backend("rank", spectra[0].device.type)
    tables: list[Tensor] = module.summary_tables(spectra, shapes, rtol)
    return tables


def _fused_kernel(A: list[Tensor], rtol: float) -> tuple[list[Tensor], list[Tensor]]:
    """One launch per shape where the solver writes its own tables, else one more for the ranks."""
    module = dispatch.backend("svd", A[0].device.type)
    if hasattr(module, "svdvals_with_tables"):
        values, tables = module.svdvals_with_tables(A, rtol)
        return values, tables
    spectra = svdvals_list(A)
    return spectra, _tables(spectra, [_sides(x) for x in A], rtol)


def _kernel(S: list[Tensor], m: list[int], n: list[int], rtol: float) -> list[Tensor]:
    return _tables(S, list(zip(m, n, strict=True)), rtol)


schemas.implement("svdvals_with_tables", _fused_kernel)
schemas.implement("summarize", _kernel)
schemas.differentiate("summarize", summarize_backward, summarize_setup)
