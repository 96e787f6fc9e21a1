r"""Error bounds of singular values from the residuals of their vectors.

For a triplet (u, s, v) with s >= 0, none of them assumed exact or normalised, let

    R^2 = ||A v - s u||^2 + ||A^T u - s v||^2,      N^2 = ||u||^2 + ||v||^2.

**One triplet.** Some singular value lies within rho of s, where for m = n, or for R <= s N,
rho = R / N; and rho = sqrt(R^2 - s^2 ||u||^2) / ||v|| for m > n otherwise (u and v exchanged for
m < n). Proof: H = [[0, A], [A^T, 0]] is symmetric with the eigenvalues +-sigma_i, which count
(-sigma is further from s >= 0 than sigma), and |m - n| zeros, which do not. For m > n the latter
belong to vectors (b, 0), and H commutes with the projection P onto the rest. With x = (u, v) and
b the part of u that P removes, the spectral theorem on the range of P gives an eigenvalue that
counts within

    ||(H - s) P x|| / ||P x|| = sqrt((R^2 - s^2 ||b||^2) / (N^2 - ||b||^2)).

||b|| is not known, but 0 <= ||b|| <= ||u||, and the fraction falls with ||b|| where R <= s N and
rises with it otherwise: the worst case is at one of the two ends.

**Different triplets, different singular values.** Where the intervals [s - rho, s + rho] do not
meet, their singular values are different ones. Where they do, they are merged into one cluster
C, and all of it gets one radius:

    beta = sqrt(sum_C (R_i / N_i)^2) / sqrt(lambda_min(G)),   G the Gram matrix of all (u, v) / N

by Kahan's theorem in its sharp form (Cao, Xie, Li, Linear Algebra Appl. 245, 1996): to the
columns of X with residual H X - X diag(s) belong as many eigenvalues of H, counted with
multiplicity, within ||H X - X diag(s)|| / sigma_min(X) of their s. lambda_min of the whole G
bounds sigma_min(X)^2 for every cluster (interlacing), and the 2-norm of the residuals of all
triplets replaces the sum where it is smaller. If a cluster's interval reaches zero, the
eigenvalues might be -sigma_i or the zeros that do not count; it is the interval [0, tau] then,

    tau = sqrt(sum_C (||A v_i - s_i u_i|| + s_i ||u_i||)^2) / sigma_min(V)     (m >= n),

an upper bound of ||A V_C|| / sigma_min(V_C), under which |C| singular values lie (Courant,
Fischer). Merging repeats until no two intervals meet.

What this does not say: that s_i belongs to the i-th singular value of A. A triplet that the
method missed leaves no residual.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_kernels.entry import checks
from spectral_kernels.entry.arrays import Array, enter_together
from spectral_kernels.runtime import numerics


def bounds_from_residuals(
    A: Array | Sequence[Array],
    U: Array | Sequence[Array],
    S: Array | Sequence[Array],
    Vh: Array | Sequence[Array],
) -> Array | list[Array]:
    """Return bounds of singular values, from the residuals of their vectors.

    For every matrix there are k different singular values of A (counted with multiplicity), one
    for each triplet, with |S_i - sigma| <= bound_i. The vectors need not be exactly orthonormal,
    nor the triplets exact: whatever is wrong with them shows in the residuals. The theorem is in
    the head of this file. Residuals are computed in float64, and a bound on their own rounding
    is included.

    Args:
        A: (..., m, n) as for ``svd``; lists or tuples of all four give a list.
        U: (..., m, k) approximate left vectors as columns.
        S: (..., k) approximate singular values; a negative one has the bound infinity.
        Vh: (..., k, n) approximate right vectors as rows.

    Returns:
        (..., k), float64 where A is, else float32; infinite for a matrix with an infinite S, as
        where values overflow, and NaN where anything else that is given is not finite. Declared
        non-differentiable: the result is detached.

    Raises:
        TypeError: integer or complex dtype.
        ValueError: shapes that do not chain, mixed devices or kinds.

    Example:
        >>> A = np.random.default_rng(0).standard_normal((6, 4))
        >>> U, S, Vh = sk.svd(A)
        >>> bounds = sk.bounds_from_residuals(A, U, S, Vh)
        >>> bounds.shape, bool((bounds < 1e-12).all())
        ((4,), True)
    """
    (As, Us, Ss, Vhs), leave = enter_together(A=A, U=U, S=S, Vh=Vh)
    with torch.no_grad():
        results = []
        for a, u, s, vh in zip(As, Us, Ss, Vhs, strict=True):
            _check(a, u, s, vh)
            results.append(_bounds(a, u, s, vh))
    return leave(results)


def _check(A: Tensor, U: Tensor, S: Tensor, Vh: Tensor) -> None:
    checks.check_matrix(A)
    checks.check_matrix(U, "U")
    checks.check_dtype(S, "S")
    checks.check_matrix(Vh, "Vh")
    checks.check_devices(A=A, U=U, S=S, Vh=Vh)
    *batch, m, n = A.shape
    k = S.shape[-1] if S.dim() else 0
    if [*U.shape, *S.shape, *Vh.shape] != [*batch, m, k, *batch, k, *batch, k, n]:
        raise ValueError(
            f"shapes do not chain: A is {tuple(A.shape)}, U {tuple(U.shape)}, S {tuple(S.shape)}, "
            f"Vh {tuple(Vh.shape)}; expected (..., m, n), (..., m, k), (..., k), (..., k, n)"
        )
    if k > min(m, n):
        raise ValueError(f"S has {k} values; expected at most min(m, n) = {min(m, n)}")


def _bounds(A: Tensor, U: Tensor, S: Tensor, Vh: Tensor) -> Tensor:
    dtype = numerics.result_dtype(A.dtype)
    if S.numel() == 0:
        return S.new_empty(S.shape, dtype=dtype)
    batch = A.shape[:-2]
    A, U, S, Vh = (x.double() for x in (A, U, S, Vh))
    A, exponent, bad = numerics.normalize(A)
    unknown = torch.isinf(S)
    S = numerics.scale(S.masked_fill(unknown, 0.0), -exponent[..., None])
    for x, dims in ((U, (-2, -1)), (S, (-1,)), (Vh, (-2, -1))):
        bad = bad | ~torch.isfinite(x).all(dim=dims[0]).reshape(*batch, -1).all(dim=-1)
    U, S, Vh = (
        torch.where(bad.reshape(*batch, *[1] * (x.dim() - len(batch))), 0.0, x) for x in (U, S, Vh)
    )
    S, order = S.sort(dim=-1, descending=True)
    columns = order.unsqueeze(-2).expand(*batch, U.shape[-2], -1)
    rows = order.unsqueeze(-1).expand(*batch, -1, Vh.shape[-1])
    sorted_bounds = _Triplets(A, U.gather(-1, columns), S, Vh.gather(-2, rows).mT).radii()
    bounds = torch.empty_like(sorted_bounds).scatter_(-1, order, sorted_bounds)
    bounds = numerics.scale(bounds, exponent[..., None])
    bounds = torch.where(unknown.any(dim=-1, keepdim=True), float("inf"), bounds)
    if dtype == torch.float32:
        # The conversion may round down.
        bounds = bounds.float().nextafter(torch.tensor(float("inf"), device=bounds.device))
    return numerics.poison(bounds, bad)


class _Triplets:
    """The residuals of the triplets of a batch, float64, S descending, V with columns v_i."""

    def __init__(self, A: Tensor, U: Tensor, S: Tensor, V: Tensor) -> None:
        m, n = A.shape[-2:]
        self.S = S
        left, right = U.square().sum(dim=-2), V.square().sum(dim=-2)
        self.size = (left + right).sqrt()
        on_left = A @ V - U * S.unsqueeze(-2)
        on_right = A.mT @ U - V * S.unsqueeze(-2)
        # The classical bound of an inner product, gamma_n |a| |b| (Higham 2002, Section 3.1).
        gamma = (max(m, n) + 4) * torch.finfo(torch.float64).eps
        rounding = gamma * (torch.linalg.matrix_norm(A).unsqueeze(-1) + S.abs()) * self.size
        norms = (on_left.square().sum(dim=-2), on_right.square().sum(dim=-2))
        self.residual = (norms[0] + norms[1]).sqrt() + rounding
        # The smaller side has no null vectors of its own; "inner" vectors live there.
        tall = m >= n
        self.outer, self.inner = (left, right) if tall else (right, left)
        pull = norms[0] if tall else norms[1]
        self.pull = pull.sqrt() + rounding + S.abs() * self.outer.sqrt()
        self.square = m == n
        size = torch.where(self.size > 0, self.size, 1.0).unsqueeze(-2)
        self.independence = _smallest(torch.cat((U, V), dim=-2) / size)
        self.inner_independence = _smallest(V if tall else U)
        block = torch.cat((on_left, on_right), dim=-2) / size
        slack = torch.linalg.vector_norm(rounding, dim=-1, keepdim=True)
        self.all_residuals = _largest(block) + slack

    def radii(self) -> Tensor:
        """Return the bounds: merge clusters until their intervals are disjoint."""
        S = self.S
        cluster = torch.arange(S.shape[-1], device=S.device).expand(S.shape)
        while True:
            together = cluster.unsqueeze(-1) == cluster.unsqueeze(-2)
            radius, low, high = self._intervals(together)
            gap = low[..., :-1] > high[..., 1:]
            gap &= ~together.diagonal(offset=1, dim1=-2, dim2=-1)
            merged = torch.nn.functional.pad(gap.cumsum(dim=-1), (1, 0))
            if torch.equal(merged, cluster):
                # Nothing is known about a negative value: the theorem needs s >= 0.
                return torch.where(S < 0, float("inf"), radius)
            cluster = merged

    def _intervals(self, together: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return radius, low and high end of every triplet's cluster; ``together`` (..., k, k)."""
        S = self.S
        largest = torch.where(together, S.unsqueeze(-2), -float("inf")).amax(dim=-1)
        smallest = torch.where(together, S.unsqueeze(-2), float("inf")).amin(dim=-1)
        alone = together.sum(dim=-1) == 1
        block = self._sum(together, self.residual / self.size).minimum(self.all_residuals)
        beta = block / self.independence
        tau = self._sum(together, self.pull) / self.inner_independence
        radius = torch.where(alone, self._single(), _unknown_as_infinite(beta))
        at_zero = ~alone & (smallest - radius <= 0)
        tau = torch.maximum(_unknown_as_infinite(tau), largest)
        low = torch.where(at_zero, 0.0, smallest - radius)
        high = torch.where(at_zero, tau, largest + radius)
        return torch.where(at_zero, torch.maximum(S, tau - S), radius), low, high

    def _single(self) -> Tensor:
        plain = self.residual / self.size
        if self.square:
            return _unknown_as_infinite(plain)
        rest = (self.residual.square() - self.S.square() * self.outer).clamp_min(0.0)
        worst = rest.sqrt() / self.inner.sqrt()
        radius = torch.where(self.residual <= self.S * self.size, plain, worst)
        return _unknown_as_infinite(radius)

    @staticmethod
    def _sum(together: Tensor, values: Tensor) -> Tensor:
        """Return the 2-norm of ``values`` over each triplet's cluster."""
        squares = values.square().unsqueeze(-2)
        return torch.where(together, squares, 0.0).sum(dim=-1).sqrt()


def _largest(X: Tensor) -> Tensor:
    """Return an upper bound of sigma_max(X), (..., 1); infinity where squares overflow."""
    X, huge = _without_huge(X)
    gram = X.mT @ X
    most = torch.linalg.eigvalsh(gram)[..., -1:] + _eigenvalue_error(X, gram)
    return torch.where(huge, float("inf"), most.sqrt())


def _without_huge(X: Tensor) -> tuple[Tensor, Tensor]:
    """Zero the matrices whose squares overflow; return the mask of them, (..., 1)."""
    largest = torch.linalg.vector_norm(X, float("inf"), dim=(-2, -1), keepdim=True)
    huge = ~(largest < 1e150)
    return torch.where(huge, 0.0, X), huge[..., 0]


def _smallest(X: Tensor) -> Tensor:
    """Return a lower bound of sigma_min(X), (..., 1), from the Gram matrix in float64."""
    X, _ = _without_huge(X)
    gram = X.mT @ X
    least = torch.linalg.eigvalsh(gram)[..., :1] - _eigenvalue_error(X, gram)
    sigma: Tensor = least.clamp_min(0.0).sqrt()
    return sigma


def _unknown_as_infinite(x: Tensor) -> Tensor:
    """Turn the 0/0 of vectors that are zero into a bound that holds."""
    return torch.where(torch.isnan(x), float("inf"), x)


def _eigenvalue_error(X: Tensor, gram: Tensor) -> Tensor:
    """Return what rounding in the product and the solver can do to an eigenvalue, (..., 1)."""
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(dim=-1, keepdim=True)
    return (X.shape[-2] + 8 * X.shape[-1]) * torch.finfo(torch.float64).eps * trace
