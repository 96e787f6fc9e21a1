"""One iteration of leading vectors on a GPU, for matrices of one shape, and what it proves.

The steps and letters are those of ``bounds.py``: Y = A Q, U M = Y, B = U^T A = P S V^T. Products
are 3xTF32 in pieces that float64 sums; blocks are orthonormalised by Cholesky QR in float64 and
kept in float32. Nothing here reads a number back.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spectral_kernels.products.triton_backend import partial_grams
from spectral_kernels.rsvd import triton_launch as kernels
from spectral_kernels.rsvd.triton_backend import unscale
from spectral_kernels.rsvd.triton_launch import Batch
from spectral_kernels.runtime import dispatch
from spectral_kernels.tracking.leading.bounds import BlockErrors, Certificate, certify
from spectral_kernels.tracking.leading.triton_launch import leftover

# Of |a| |x|, for each term of a product: three of 2^-20 of the halves that TF32 cuts off, and the
# sums of 16 terms in 6 steps on the tensor cores, each cutting off 9 times 2^-23 (at most).
_PRODUCT = 10 * 2.0**-20
_UNIT = 2.0**-24
# Cholesky QR takes columns that are within this of the ones before them for dependent.
_DEPENDENT = 2.0**-21.5
# What float64 does to a factorisation, relative to ||A||_F.
_FACTOR = 1e-10


class Iteration(NamedTuple):
    """Of B matrices (m, n), scaled: Ut (B, k, m), s (B, l), V (B, n, l), and what it proves.

    ``gain`` (B,): the most that the last half step added to one of the k values. ``frobenius``
    (B,): ||A||_F. ``largest`` (B,): the bits of max|a|.
    """

    Ut: Tensor
    s: Tensor
    V: Tensor
    certificate: Certificate
    gain: Tensor
    frobenius: Tensor
    largest: Tensor


def iterate(batch: Batch, X: Tensor, k: int) -> Iteration:
    """Return what one iteration from the block X (B, n, l) float32 finds; see the module."""
    width = X.shape[-1]
    Q, _ = kernels.orthonormalise(X[:, None], 2, 0)
    largest = torch.zeros(len(batch), dtype=torch.int32, device=X.device)
    squares = kernels.square_sums(batch, width)
    Y = kernels.product(batch, Q, largest, True, width, squares=squares)
    U, M = kernels.orthonormalise(Y, 2, 0)
    Bt = kernels.product(batch, U, largest, False, width, transposed=True)
    V, R = kernels.orthonormalise(Bt, 2, 0)
    P, s, Wh = dispatch.backend("svd", R.device.type).svd([R])[0]
    frobenius = squares.sum(1).sqrt()
    scaled = frobenius * scale(largest)
    seen = torch.linalg.vector_norm(M.mT @ Wh.mT, dim=1)
    errors = _errors(departure(Q), departure(U), width, scaled)
    rest = _rest(batch, U, Bt, s, scaled, errors, largest)
    cosine = torch.where(s > 0, seen / torch.where(s > 0, s, 1.0), 1.0).clamp_max(1.0)
    return Iteration(
        kernels.apply(U[:, None], Wh.mT[..., :k], fill=False, by_columns=True),
        s,
        kernels.apply(V[:, None], P, fill=False),
        certify(s, seen, rest, errors, k),
        (s * (1.0 - cosine))[:, :k].amax(dim=1),
        frobenius,
        largest,
    )


def improve(batch: Batch, X: Tensor, iterations: int) -> Tensor:
    """Return the block after so many iterations of which nothing is to be known."""
    width = X.shape[-1]
    largest = torch.zeros(len(batch), dtype=torch.int32, device=X.device)
    for number in range(iterations):
        Q, _ = kernels.orthonormalise(X[:, None], 1, 0)
        Y = kernels.product(batch, Q, largest, number == 0, width)
        U, _ = kernels.orthonormalise(Y, 1, 0)
        Bt = kernels.product(batch, U, largest, False, width, transposed=True)
        X = Bt.sum(1)
    return X


def departure(Q: Tensor) -> Tensor:
    """Return ||Q^T Q - I||_F of Q (B, n, l), with what the measurement itself may be off."""
    count, n, width = Q.shape
    offsets = torch.arange(count, device=Q.device) * Q.stride(0)
    G = partial_grams(Q, offsets, n, width, width, 1).sum(1)
    eye = torch.eye(width, dtype=G.dtype, device=G.device)
    size: Tensor = torch.linalg.vector_norm(G - eye, dim=(1, 2))
    return size + width * n * 2.0**-52


def scale(largest: Tensor) -> Tensor:
    """Return the powers of two that products were scaled by, float64, from bits of max|a|."""
    return 1.0 / unscale(largest)


def _errors(basis: Tensor, left: Tensor, width: int, frobenius: Tensor) -> BlockErrors:
    root = width**0.5
    solved = _FACTOR + root * _DEPENDENT + 2.0 * _UNIT
    each = (1.01 * root * (_PRODUCT + _UNIT) + left + solved) * frobenius
    return BlockErrors(each, each, basis)


def _rest(
    batch: Batch,
    U: Tensor,
    Bt: Tensor,
    s: Tensor,
    frobenius: Tensor,
    errors: BlockErrors,
    largest: Tensor,
) -> Tensor:
    """Return rho: of the difference of two norms, and of A - U B where rounding eats that up."""
    beta = torch.as_tensor(errors.product)
    least = (torch.linalg.vector_norm(s, dim=1) - beta).clamp_min(0.0)
    squared = (frobenius.square() * (1.0 + 2.0**-40) - least.square()).clamp_min(0.0)
    rest = squared.sqrt()
    needed = squared <= 4.0 * beta * frobenius
    formed = leftover(batch, U, Bt, needed, largest)
    # What U departs from orthonormal, and the sums in float64.
    formed = formed + (departure(U) + U.shape[-1] ** 1.5 * 2.0**-52) * frobenius
    return torch.where(needed, torch.minimum(rest, formed), rest)
