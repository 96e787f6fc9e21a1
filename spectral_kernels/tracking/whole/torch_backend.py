"""Tracking in plain torch and float64, on any device, one matrix after the other.

One-sided Jacobi with all rotations of a sweep at once: W = X V keeps the small singular values
accurate, since they are norms of columns and no eigenvalues of a Gram matrix.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spectral_kernels.entry.results import SVD
from spectral_kernels.runtime import numerics
from spectral_kernels.svd import torch_backend as exact
from spectral_kernels.tracking.bounds import Certificate, certify, departure_bound
from spectral_kernels.tracking.results import NOT_FINITE_CODE, SOLVED, Tracked, Work
from spectral_kernels.tracking.whole.state import LARGEST_ROW, ROTATIONS, WORK, State


class _Measured(NamedTuple):
    V: Tensor
    W: Tensor
    gram: Tensor
    certificate: Certificate


class Updates(NamedTuple):
    """Updates of batches (B, m, n) and their states."""

    matrices: list[Tensor]
    states: list[State]
    tolerance: float

    def run(self) -> list[Tracked]:
        """Return the factors of each batch; its state is overwritten with the new one."""
        pairs = zip(self.matrices, self.states, strict=True)
        return [_track_batch(A, state, self.tolerance) for A, state in pairs]


def prepare(matrices: list[Tensor], states: list[State], tolerance: float) -> Updates:
    """Return the updates of matrices that lie where they lie now."""
    for A, state in zip(matrices, states, strict=True):
        state.to_host(A.device)
    return Updates(matrices, states, tolerance)


def _track_batch(A: Tensor, state: State, tolerance: float) -> Tracked:
    batch, m, n = A.shape
    r = min(m, n)
    dtype = numerics.result_dtype(A.dtype)
    Ut = A.new_full((batch, r, m), float("nan"), dtype=dtype)
    S = A.new_full((batch, r), float("nan"), dtype=dtype)
    Vh = A.new_full((batch, r, n), float("nan"), dtype=dtype)
    bounds = A.new_full((batch, r), float("nan"), dtype=torch.float64)
    error_norms = A.new_full((batch,), float("nan"), dtype=torch.float64)
    identities = torch.full((batch, r), -1, dtype=torch.int64)
    codes = []
    for i in range(batch):
        scaled, exponent, bad = numerics.normalize(A[i].double())
        if bool(bad):
            codes.append(NOT_FINITE_CODE)
            continue
        code, factors = _update(scaled, state, i, tolerance, A.dtype)
        U, values, vh, radii, order = _factors(factors, tall=m >= n)
        Ut[i], Vh[i] = U.mT, vh
        S[i] = numerics.scale(values, exponent)
        # The smallest number: what the narrowing of a denormal result costs.
        least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        bounds[i] = numerics.scale(radii, exponent) + least
        error_norms[i] = numerics.scale(factors.certificate.error_norm, exponent) + r**0.5 * least
        _remember(factors.V, state, i, code, order)
        identities[i] = state.names[i, order.cpu()]
        codes.append(code)
    work = Work.of(codes, WORK, A.device)
    return Tracked(SVD(Ut.mT, S, Vh), bounds, error_norms, identities.to(A.device), work)


def _remember(V: Tensor, state: State, i: int, code: int, order: Tensor) -> None:
    """Keep the vectors for the next update; those of a new solution find their old names."""
    names = state.names[i]
    r = V.shape[-1]
    if not state.warm[i]:
        names[order.cpu()] = torch.arange(r)
        names[r] = r
    elif code == SOLVED:
        cosines, nearest = (state.vectors[i].to(V).mT @ V).abs().max(dim=0)
        fresh = (cosines**2 <= 0.5).cpu()
        old = names[nearest.cpu()]
        first = int(names[r])
        names[:r] = torch.where(fresh, first + fresh.cumsum(0) - 1, old)
        names[r] = first + int(fresh.sum())
    state.vectors[i] = V
    state.drift[i] = departure_bound(state.vectors[i].double())
    state.warm[i] = True


def _update(
    A: Tensor, state: State, i: int, tolerance: float, dtype: torch.dtype
) -> tuple[int, _Measured]:
    X = A if A.shape[0] >= A.shape[1] else A.mT
    old = state.vectors[i].to(X.dtype)
    if state.warm[i]:
        V = old
        for rotations in range(ROTATIONS + 1):
            measured = _measure(X, V, dtype)
            values, radii, *_ = measured.certificate
            # False for NaN too, which a state from elsewhere may hold.
            if bool(radii.max() <= tolerance * values.max()):
                return rotations, measured
            if rotations < ROTATIONS:
                V = _orthonormalize(V @ _rotation(measured.gram, X.shape[0]))
    U, _, Vh = exact.svd([A])[0]
    V = Vh.mT if A.shape[0] >= A.shape[1] else U
    if state.warm[i]:
        V = _with_signs_of(old, V)
    return SOLVED, _measure(X, V, dtype)


def _measure(X: Tensor, V: Tensor, dtype: torch.dtype) -> _Measured:
    W = X @ V
    gram = W.mT @ W
    return _Measured(V, W, gram, certify(gram, _departure(V), X.shape[0], dtype))


def _departure(V: Tensor) -> Tensor:
    """Return V^T V - I."""
    departure = V.mT @ V
    departure.diagonal().sub_(1.0)
    return departure


def _rotation(gram: Tensor, rows: int) -> Tensor:
    """Return I + E + E^2/2, which diagonalises ``gram`` in part; orthogonal to third order.

    E holds the tangents of Jacobi's rotations of all pairs at once (Rutishauser 1966), scaled
    down where those of a column add up to too much.
    """
    squares = gram.diagonal()
    lengths = squares.clamp_min(0.0).sqrt()
    noise = rows * torch.finfo(torch.float64).eps * lengths * lengths.unsqueeze(-1)
    # Equal values with a cosine of rounding would turn by 45 degrees for nothing.
    turn = gram.abs() > noise
    tau = (squares - squares.unsqueeze(-1)) / torch.where(turn, 2.0 * gram, 1.0)
    tangent = torch.where(tau < 0, -1.0, 1.0) / (tau.abs() + torch.hypot(tau, torch.ones_like(tau)))
    upper = torch.where(turn, tangent, 0.0).triu(1)
    E = upper - upper.mT
    shrink = LARGEST_ROW / E.abs().sum(dim=-1).clamp_min(LARGEST_ROW)
    E = E * torch.minimum(shrink, shrink.unsqueeze(-1))
    R = E + 0.5 * (E @ E)
    R.diagonal().add_(1.0)
    return R


def _orthonormalize(V: Tensor) -> Tensor:
    """Return Newton-Schulz steps of V towards its polar factor; each squares the departure.

    A small sweep needs one step, the largest (departure 0.6^4 / 4) two to float32's precision.
    """
    for _ in range(2):
        departure = _departure(V)
        V = V - 0.5 * (V @ departure)
        if bool(departure.abs().max() < 1e-6):
            break
    return V


def _with_signs_of(old: Tensor, V: Tensor) -> Tensor:
    """Turn every column of V towards the old column that it resembles most."""
    overlap = old.mT @ V
    best = overlap.gather(0, overlap.abs().argmax(dim=0, keepdim=True))
    return V * torch.where(best < 0, -1.0, 1.0).to(V.dtype)


def _factors(measured: _Measured, tall: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return U, S, Vh and the bounds of S, sorted, and the order."""
    values, radii, rounding, _ = measured.certificate
    values, order = values.sort(descending=True, stable=True)
    V = measured.V[:, order]
    # Columns of W are orthogonal only up to their cosines. Gram-Schmidt from the largest down
    # leaves what is wrong with the smaller ones to them, and completes zero columns.
    Q, R = torch.linalg.qr(measured.W[:, order])
    Q = Q * torch.where(R.diagonal() < 0, -1.0, 1.0).to(Q.dtype)
    U, Vh = (Q, V.mT) if tall else (V, Q.mT)
    return U, values, Vh, radii[order] + rounding, order
