r"""What one step of block subspace iteration proves about the leading singular values.

A (m, n) with r = min(m, n); Q (n, l) with ||Q^T Q - I||_F <= f < 1; U (m, l) an orthonormal basis
of A Q, so A Q = U M; B = U^T A = P S V^T with s_1 >= ... >= s_l. U is orthonormal up to rounding,
and what follows is for the nearest one that is. E = (I - U U^T) A is what the block leaves:

    rho^2 = ||E||_F^2 = ||A||_F^2 - ||B||_F^2.

1. **From below**: sigma_i >= s_i, for B = U^T A (Cauchy).

2. **Residuals without another product**: E Q = (I - U U^T) U M = 0. So E v = E z with z the part of
   v that is orthogonal to the range of Q, and

       ||A v_i - s_i u_i|| = ||E v_i|| <= rho sin(v_i, Q) =: r_i.

   The angle is at hand too: Q^T v_i = (U^T A Q)^T p_i / s_i = M^T p_i / s_i, and the projection
   of v_i onto the range of Q is at least ||Q^T v_i|| / sqrt(1 + f) long. Some singular value lies
   within r_i of s_i, and the matrix A - E v_i v_i^T has (u_i, s_i, v_i) for a triplet.

3. **From above**. In the bases [U P, U'] and [V, V'] the matrix is [S 0; R T], the columns of R
   being those of E V, R and T together of Frobenius norm rho. Cut after any j >= i: let S_j, R_j
   hold the first j columns and T_j all the rest. Then, for t >= ||T_j||_2 and
   q^2 = r_i^2 + ... + r_j^2,

       sigma_i <= h(s_i, q, t),  h(s, q, t) = ||[s 0; q t]||_2
                                            = (sqrt((s+t)^2 + q^2) + sqrt((s-t)^2 + q^2)) / 2.

   Proof. Let x = sigma_i^2 > t^2 (else the claim is plain). x is the i-th eigenvalue of
   [S^2 + R^T R, R^T T; T^T R, T^T T], and x - T^T T is positive definite, so x is the i-th
   eigenvalue, or below it, of the Schur complement S^2 + R^T R + R^T T (x - T^T T)^-1 T^T R =
   S^2 + R^T x (x - T T^T)^-1 R <= S^2 + x / (x - t^2) R^T R (inertia is additive, and the order
   of symmetric matrices is that of their eigenvalues). By Courant and Fischer on the span of the
   axes i to j, x <= s_i^2 + x q^2 / (x - t^2), that is x^2 - (s_i^2 + t^2 + q^2) x + s_i^2 t^2
   <= 0, and the larger root is h^2.

   It holds Weyl's s_i + q (t <= s_i) and the quadratic bound of Li and Li (Linear Algebra Appl.
   395, 2005), s_i + O(q^2 / (s_i - t)). For the whole block t = rho; for j < l,
   T_j = [diag(s_{j+1} ...) 0; R_{>j} T], so t = h(s_{j+1}, sqrt(r_{j+1}^2 + ...), rho).

4. **All at once**: A^T A = B^T B + E^T E, so sigma_i <= sqrt(s_i^2 + rho^2), and
   0 <= sum_i (sigma_i^2 - s_i^2) <= rho^2 over any of the leading i (Ky Fan). As
   (sigma_i - s_i)^2 <= sigma_i^2 - s_i^2, the 2-norm of all errors is at most rho.

Where the spectrum is flat, rho > sigma_k and these say little: mass outside of the block may be one
large value. No number that is computed from A Q and U^T A tells the two apart; the residuals do say
how far the triplets are from being some.

**Rounding.** What is computed differs from U^T A by beta = ||U^T A - P S V^T||_F, and from the
statements E Q = 0 and U^T A Q = M by eta. (1) to (4) hold for A + U (P S V^T - U^T A), so beta is
added to every bound, beta + eta is taken off ||M^T p_i||, beta off ||B||_F, and 2 eta is added to
every r_i. Sums of d products, as the kernels make them (64 at a time), are within gamma_(64 + d/64)
of |x| |y| (Higham 2002, section 3.1), which for all of U^T A is sqrt(l) gamma ||A||_F. Where rho is
below that noise, A - U B is formed and measured instead: ||A - U X||_F >= rho for every X.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class BlockErrors(NamedTuple):
    """beta and eta of the theorem, and f = ||Q^T Q - I||_F, (...); the first two absolute."""

    product: Tensor | float
    image: Tensor | float
    basis: Tensor | float


class Certificate(NamedTuple):
    """Bounds (..., k) of |s_i - sigma_i|, their 2-norm (...), residuals (..., k); all float64."""

    bounds: Tensor
    error_norm: Tensor
    residuals: Tensor


def certify(s: Tensor, seen: Tensor, rest: Tensor, errors: BlockErrors, k: int) -> Certificate:
    """Return the theorem's bounds for the k leading of l values.

    Args:
        s: (..., l) the singular values of U^T A, descending, float64.
        seen: (..., l) ||M^T p_i||.
        rest: (...) rho.
        errors: what is not exact.
        k: how many bounds.
    """
    beta, eta, f = (torch.as_tensor(x, dtype=s.dtype, device=s.device)[..., None] for x in errors)
    rho = rest[..., None]
    positive = torch.where(s > 0, s, 1.0)
    cosine = torch.where(s > 0, (seen - beta - eta).clamp_min(0.0) / positive, 0.0)
    sine = (1.0 - cosine.square() / (1.0 + f)).clamp_min(0.0).sqrt()
    residuals = torch.where(f < 0.75, torch.minimum(rho * sine + 2.0 * eta, rho), rho)
    # after[j]: squares of the residuals from j on.
    after = torch.nn.functional.pad(residuals.square().flip(-1).cumsum(-1).flip(-1), (0, 1))
    following = torch.nn.functional.pad(s[..., 1:], (0, 1))
    below = _coupled(following, torch.minimum(after[..., 1:].sqrt(), rho), rho)
    # Nothing of the block follows its last value.
    last = torch.arange(s.shape[-1], device=s.device) == s.shape[-1] - 1
    below = torch.where(last, rho, below)
    # own[i, j]: the residuals of i to j, for the cut after j.
    own = after[..., :k, None] - after[..., None, 1:]
    own = torch.minimum(own.clamp_min(0.0).sqrt(), rho[..., None])
    high = _coupled(s[..., :k, None], own, below[..., None, :])
    cut = torch.arange(s.shape[-1], device=s.device)
    high = torch.where(cut >= cut[:k, None], high, float("inf")).amin(dim=-1)
    high = torch.minimum(high, torch.hypot(s[..., :k], rho))
    bounds = (high - s[..., :k]).clamp_min(0.0) + beta
    norm = torch.minimum(bounds.norm(dim=-1), rest + beta[..., 0])
    return Certificate(bounds, norm, residuals[..., :k])


def _coupled(s: Tensor, q: Tensor, t: Tensor) -> Tensor:
    """Return h(s, q, t), the 2-norm of [s 0; q t]."""
    return 0.5 * (torch.hypot(s + t, q) + torch.hypot(s - t, q))
