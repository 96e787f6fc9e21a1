r"""What errors of singular values do to ranks and norms.

s (r) are computed values, sigma = s + d the true ones in the same order, |d_i| <= b_i and
||d||_2 <= beta. N = sum s, and below everything is in units of N: p = s / N, D = sum d,

    |D| <= ||d||_1 <= B = min(sum b_i, sqrt(r) beta).

Norms: d_1, D and ||d||_2 bound the errors of the spectral, nuclear and Frobenius norm. Stable rank:
1 + ||(sigma_2, ..)||^2 / sigma_1^2, the quotient of extremes of these two, at most r. Numerical
rank: how many s_i lie within b_i + rtol b_1 of the threshold rtol s_1.

Entropy. With phi(x) = x ln x and x = p + d >= 0, H' = ln(1 + D) - sum phi(x_i) / (1 + D). Split the
indices into E, where b_i <= p_i, and the rest R.

1. In E: phi(p + d) = phi(p) + (ln p + 1) d + Q with 0 <= Q <= d^2 / p, since phi is convex and
   ln(1 + d / p) <= d / p. In R: G_i = |phi(p_i + d_i) - phi(p_i)|. With g_i = ln p_i + H, and D_R
   the sum of d over R,

       H' - H = [-sum_E g_i d_i - sum_E Q_i - sum_R (+-G_i) + (1 - H) D_R] / (1 + D) + kappa,

   kappa = ln(1 + D) - D / (1 + D), which lies between 0 and D^2 / (1 + D) as ln(1 + D) <= D.
   In E the errors enter with the derivative of H alone: to first order ||g||_2 beta.

2. Q and kappa pull in opposite directions, so for B < 1

       |H' - H| <= [min(||g||_2 beta, sum_E |g_i| b_i) + |1 - H| B_R + sum_R G_i
                    + max(Q, B^2)] / (1 - B),   Q = min(sum_E b_i^2 / p_i, beta^2 / min_E p_i).

3. eta = -phi is concave with eta(0) = 0, so its largest change over [max(p - b, 0), p + b] is at an
   end or at the peak 1 / e; and a step of length t changes it by eta(t) at most, as long as
   t <= e^-2 (where eta rises with slope 1 or more, the steepest slope of its falling side up to
   x = e). eta is concave there: sum_R G_i <= |R| eta(beta / sqrt|R|).

4. Never more than at the total variation distance B (d and the new sum move it by B / 2 each):
   B ln(r - 1) - B ln B - (1 - B) ln(1 - B) (Audenaert, J. Phys. A 40, 2007, for diagonal
   states), nor than max(H, ln r - H).

Terms for the rounding of the summary itself come on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_kernels.entry import checks
from spectral_kernels.entry.arrays import Array, enter_together
from spectral_kernels.entry.results import METRICS, SpectralSummary
from spectral_kernels.rank.shapes import given_shapes
from spectral_kernels.runtime import dispatch
from spectral_kernels.runtime.numerics import result_dtype


def bounds_from_value_bounds(
    S: Array | Sequence[Array],
    bounds: Array | Sequence[Array],
    *,
    error_norms: Array | Sequence[Array] | None = None,
    shape: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
) -> SpectralSummary | list[SpectralSummary]:
    """Return bounds of all ranks and norms, from bounds of the singular values.

    How far every field of ``summarize_singular_values`` can be from the truth. A theorem, derived
    in ``spectral_kernels/rank/summary_bounds.py``: whatever the true singular values are within
    these bounds, every metric of theirs is as near as this says.

    Args:
        S: (..., r) all singular values of matrices, >= 0, descending; a list or tuple gives a list.
        bounds: (..., r) of |S_i - sigma_i|, absolute, >= 0, such as ``SpectrumTracker.bounds``.
        error_norms: (...) bounds of the 2-norm of all errors of a matrix; where it is much less
            than that of ``bounds``, the ranks gain by it. None: the norm of ``bounds``.
        shape: (m, n) of the matrix, or a list of shapes, as for ``summarize_singular_values``.

    Returns:
        ``SpectralSummary`` of float64 bounds, absolute and in the units of the metric (nats for
        ``effective_rank``); ``singular_values`` are ``bounds``. NaN where an input is NaN, infinite
        where one of S is, as where values overflow.

    Raises:
        TypeError: integer or complex dtype.
        ValueError: shapes of S, bounds and error_norms that do not match, min(shape) other than r,
            mixed devices or kinds.

    Example:
        >>> bounds = sk.bounds_from_value_bounds(np.array([2.0, 1.0]), np.array([0.01, 0.01]))
        >>> round(float(bounds.spectral_norm), 6), round(float(bounds.nuclear_norm), 6)
        (0.01, 0.02)
    """
    named: dict[str, Any] = {"S": S, "bounds": bounds}
    if error_norms is not None:
        named["error_norms"] = error_norms
    entered, leave = enter_together(**named)
    for name, tensors in zip(named, entered, strict=True):
        for tensor in tensors:
            checks.check_dtype(tensor, name)
    spectra = [x.detach().to(result_dtype(x.dtype)) for x in entered[0]]
    radii = [x.detach().double() for x in entered[1]]
    # The norm of the bounds is taken below, where scaling keeps it from under- and overflow.
    norms = [x.new_full(x.shape[:-1], float("inf")) for x in radii]
    if error_norms is not None:
        norms = [x.detach().double() for x in entered[2]]
    for s, b, norm in zip(spectra, radii, norms, strict=True):
        _check(s, b, norm)
    shapes = _shapes(shape, spectra)
    block = BoundedSummaries(spectra, radii, norms, shapes).run()
    tables = torch.split(block[1], [S.shape[:-1].numel() for S in spectra])
    spectra_and_tables = zip(spectra, radii, norms, tables, strict=True)
    summaries = [
        _summary(b, _unknown_as_infinite(S, b, norm, t)) for S, b, norm, t in spectra_and_tables
    ]
    result: SpectralSummary | list[SpectralSummary] = leave(summaries)
    return result


class BoundedSummaries:
    """Summaries of spectra and their bounds, again and again from the same memory.

    Args:
        spectra: (..., r), float32 or float64, descending.
        bounds: (..., r) float64 of each.
        norms: (...) float64 bounds of the 2-norm of all errors; infinity where none is known.
        shapes: (m, n) of each matrix.

    Unchecked, without gradients, one compiled call for the whole list.
    """

    def __init__(
        self,
        spectra: list[Tensor],
        bounds: list[Tensor],
        norms: list[Tensor],
        shapes: list[tuple[int, int]],
    ) -> None:
        device = spectra[0].device.type if spectra else "cpu"
        module = dispatch.backend("rank", device)
        self._tables = module.BoundedTables(spectra, bounds, norms, shapes) if spectra else None
        nothing = torch.zeros(2, 0, len(METRICS), dtype=torch.float64)
        self.out: Tensor = nothing if self._tables is None else self._tables.out
        self.calls = getattr(self._tables, "calls", None)

    def run(self) -> Tensor:
        """Return ``out`` (2, matrices, 7) float64: the summaries as they are now, and their bounds.

        Batches are unrolled in order, columns as in ``METRICS``. The next run overwrites it.
        """
        if self._tables is not None:
            with torch.no_grad():
                self._tables.run()
        return self.out


def _check(S: Tensor, bounds: Tensor, norm: Tensor) -> None:
    checks.check_devices(S=S, bounds=bounds, error_norms=norm)
    if S.dim() < 1 or bounds.shape != S.shape or norm.shape != S.shape[:-1]:
        raise ValueError(
            f"S has shape {tuple(S.shape)}, bounds {tuple(bounds.shape)} and error_norms "
            f"{tuple(norm.shape)}; expected (..., r), the same, and (...)"
        )


def _shapes(
    shape: tuple[int, int] | Sequence[tuple[int, int]] | None, spectra: list[Tensor]
) -> list[tuple[int, int]]:
    shapes = given_shapes(shape, spectra)
    for (m, n), S in zip(shapes, spectra, strict=True):
        if min(m, n) != S.shape[-1]:
            raise ValueError(
                f"shape is {(m, n)}, which has {min(m, n)} singular values, and S has "
                f"{S.shape[-1]}; expected all of them"
            )
    return shapes


def _unknown_as_infinite(S: Tensor, bounds: Tensor, norm: Tensor, table: Tensor) -> Tensor:
    """Return the bounds with those of spectra that overflowed infinite: nothing is known."""
    is_given = (bounds >= 0).all(dim=-1) & (norm >= 0) & ~S.isnan().any(dim=-1)
    overflowed = (is_given & S.isinf().any(dim=-1)).reshape(-1, 1)
    return torch.where(overflowed, float("inf"), table)


def _summary(bounds: Tensor, table: Tensor) -> SpectralSummary:
    columns = table.reshape(*bounds.shape[:-1], len(METRICS)).unbind(-1)
    return SpectralSummary(bounds, *columns)
