"""Leading triplets in plain torch and float64, on any device, one matrix after the other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spectral_kernels.entry.results import SVD
from spectral_kernels.runtime import numerics
from spectral_kernels.tracking.leading.bounds import BlockErrors, Certificate, certify
from spectral_kernels.tracking.leading.state import (
    COLD_ITERATIONS,
    PROGRESS,
    SETTLED,
    UNSETTLED,
    WARM_ITERATIONS,
    WORK,
    Block,
    Randomness,
    Schedule,
    WaitingUpdates,
)
from spectral_kernels.tracking.results import NOT_FINITE_CODE, SOLVED, Tracked, Updates, Work

_UNIT = torch.finfo(torch.float64).eps / 2


class _Iteration(NamedTuple):
    """U (m, l), s (l,) and V (n, l) of one iteration, and what it proves."""

    U: Tensor
    s: Tensor
    V: Tensor
    certificate: Certificate
    gain: float
    curable: float


def track(
    matrices: list[Tensor],
    blocks: list[Block],
    ks: list[int],
    random: list[Randomness],
    tolerance: float,
) -> list[Tracked]:
    """Return k triplets of each batch (B, m, n); its block is overwritten with the new one."""
    return [
        _track_batch(A, block, k, columns, tolerance)
        for A, block, k, columns in zip(matrices, blocks, ks, random, strict=True)
    ]


def prepare(
    matrices: list[Tensor],
    blocks: list[Block],
    ks: list[int],
    schedule: Schedule,
    tolerance: float,
) -> Updates:
    """Return the updates of matrices that lie where they lie now."""
    return WaitingUpdates(track, matrices, blocks, ks, schedule, tolerance)


def _track_batch(A: Tensor, block: Block, k: int, random: Randomness, tolerance: float) -> Tracked:
    batch, m, n = A.shape
    dtype = numerics.result_dtype(A.dtype)
    Ut = A.new_full((batch, k, m), float("nan"), dtype=dtype)
    S = A.new_full((batch, k), float("nan"), dtype=dtype)
    Vh = A.new_full((batch, k, n), float("nan"), dtype=dtype)
    bounds = A.new_full((batch, k), float("nan"), dtype=torch.float64)
    residuals, error_norms = bounds.clone(), bounds[:, 0].clone()
    frobenius_norms = error_norms.clone()
    identities = torch.full((batch, k), -1)
    codes = []
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    unit = torch.finfo(dtype).eps / 2
    for i in range(batch):
        scaled, exponent, bad = numerics.normalize(A[i].double())
        if bool(bad):
            codes.append(NOT_FINITE_CODE)
            continue
        code, iteration = _settle(scaled, block, i, k, random, tolerance)
        U, s, V, certificate, *_ = iteration
        signs = _recognise(block, i, U, V, zero=bool(s[0] == 0))
        Ut[i], Vh[i] = (U * signs).mT[:k], (V * signs).mT[:k]
        S[i] = numerics.scale(s[:k], exponent)
        # Narrowing, and the smallest number: what it costs where results are denormal.
        bounds[i] = numerics.scale(certificate.bounds + unit * s[:k], exponent) + least
        left = certificate.residuals + 3.0 * unit * scaled.norm()
        residuals[i] = numerics.scale(left, exponent) + least
        norm = certificate.error_norm + unit * s[:k].norm()
        error_norms[i] = numerics.scale(norm, exponent) + least * k**0.5
        frobenius_norms[i] = numerics.scale(scaled.norm(), exponent)
        identities[i] = block.identities[i, :k]
        if bool(s[0] > 0):
            block.vectors[i] = V * signs
            block.warm[i] = True
        codes.append(code)
    svd = SVD(Ut.mT, S, Vh)
    work = Work.of(codes, WORK, A.device)
    identities = identities.to(A.device)
    return Tracked(svd, bounds, error_norms, identities, work, residuals, frobenius_norms)


def _settle(
    A: Tensor, block: Block, i: int, k: int, random: Randomness, tolerance: float
) -> tuple[int, _Iteration]:
    """Iterate until the values have settled and no bound can be had below the tolerance."""
    start = random.start.double()
    anew = not block.warm[i]
    Q = start
    if block.warm[i]:
        kept = block.vectors.shape[-1] - random.fresh.shape[-1]
        Q = torch.cat((block.vectors[i, :, :kept].double(), random.fresh.double()), dim=-1)
    before = float("inf")
    count = 0
    while True:
        count += 1
        iteration = _iterate(A, torch.linalg.qr(Q).Q, k, tolerance)
        top = float(iteration.s[0])
        # sigma_1 >= ||A||_F / sqrt(r), whatever A is.
        lost = not anew and top < 0.5 * float(A.norm()) / min(A.shape) ** 0.5
        settled = iteration.gain <= SETTLED * tolerance * top
        helps = 0 < iteration.curable < PROGRESS * before
        before = iteration.curable
        anew = (
            anew
            or lost
            or (count == WARM_ITERATIONS and iteration.gain > UNSETTLED * tolerance * top)
        )
        limit = COLD_ITERATIONS if anew else WARM_ITERATIONS
        if (settled and not helps and not lost) or count >= limit:
            return SOLVED if anew else count, iteration
        Q = start if lost else iteration.V


def _iterate(A: Tensor, Q: Tensor, k: int, tolerance: float) -> _Iteration:
    m, n = A.shape
    width = Q.shape[-1]
    U, M = torch.linalg.qr(A @ Q)
    P, s, Vh = torch.linalg.svd(U.mT @ A, full_matrices=False)
    U = U @ P
    seen = torch.linalg.vector_norm(M.mT @ P, dim=0)
    size = float(A.norm())
    # gamma_n of the products, and a few eps of the factorisations, in the Frobenius norm.
    noise = (max(m, n) + 16 * width) * _UNIT * width**0.5 * size
    # Not the difference of two norms: with A at hand a third time, what is left is formed.
    rest = (A - (U * s) @ Vh).norm() + noise
    errors = BlockErrors(noise, noise, width * n * _UNIT)
    certificate = certify(s, seen, rest, errors, k)
    cosine = torch.where(s > 0, seen / torch.where(s > 0, s, 1.0), 1.0).clamp_max(1.0)
    gain = float((s * (1.0 - cosine))[:k].max())
    # What the bounds of a settled block would be: an iteration more brings no others below.
    least = certify(s, s, rest, errors, k).bounds
    allowed = tolerance * s[0]
    largest = torch.where(least <= allowed, certificate.bounds, 0.0).max()
    curable = float(torch.where(largest > allowed, largest, 0.0))
    return _Iteration(U, s, Vh.mT, certificate, gain, curable)


def _recognise(block: Block, i: int, U: Tensor, V: Tensor, zero: bool) -> Tensor:
    """Give every column its number, and return the sign that turns it towards the old one."""
    numbers = block.identities[i]
    if not block.warm[i]:
        numbers.copy_(torch.arange(len(numbers)))
        pivot = U.gather(0, U.abs().argmax(dim=0, keepdim=True))[0]
        return torch.where(pivot < 0, -1.0, 1.0).to(U.dtype)
    if zero:
        return torch.ones_like(U[0])
    overlap = block.vectors[i].double().mT @ V
    best, nearest = overlap.abs().max(dim=0)
    sign = torch.where(overlap.gather(0, nearest[None])[0] < 0, -1.0, 1.0)
    old, recognised = numbers.tolist(), (best.square() > 0.5).tolist()
    for j, (place, same) in enumerate(zip(nearest.tolist(), recognised, strict=True)):
        numbers[j] = old[place] if same else numbers[-1]
        numbers[-1] += not same
    return sign.to(U.dtype)
