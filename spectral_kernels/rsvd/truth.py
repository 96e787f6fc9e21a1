"""What is right: randomized subspace iteration in NumPy float64, and its random numbers.

Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review 53 (2011): Algorithm 4.4
for the range, Algorithm 5.1 for the decomposition. Salmon, Moraes, Dror, Shaw, "Parallel random
numbers: as easy as 1, 2, 3", SC 2011: Philox4x32-10.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spectral_kernels.entry.results import SVD
from spectral_kernels.svd.truth import svd


def rsvd(A: np.ndarray[Any, Any], start: np.ndarray[Any, Any], k: int, power_iters: int = 2) -> SVD:
    """Return k leading triplets of ``A`` (..., m, n) from the start block (..., n, l), l >= k."""
    A = np.asarray(A, dtype=np.float64)
    A_transposed = np.swapaxes(A, -2, -1)
    Q = np.linalg.qr(A @ np.asarray(start, dtype=np.float64)).Q
    for _ in range(power_iters):
        Q = np.linalg.qr(A_transposed @ Q).Q
        Q = np.linalg.qr(A @ Q).Q
    U, S, Vh = np.linalg.svd(np.swapaxes(Q, -2, -1) @ A, full_matrices=False)
    U = Q @ U[..., :k]
    signs = svd_signs(U)
    return SVD(U * signs[..., None, :], S[..., :k], Vh[..., :k, :] * signs[..., :, None])


def svd_signs(U: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the signs that make the largest entry of each column of ``U`` positive."""
    pivot = np.take_along_axis(U, np.abs(U).argmax(axis=-2)[..., None, :], axis=-2)[..., 0, :]
    return np.where(pivot < 0, -1.0, 1.0)


def best_error(A: np.ndarray[Any, Any], k: int) -> float:
    """Return the Frobenius error of the best approximation of rank k (Eckart, Young 1936)."""
    return float(np.linalg.norm(svd(A).S[..., k:]))


def philox(counter: np.ndarray[Any, Any], key: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Return Philox4x32-10 of ``counter`` (4, ...), words of 32 bits in uint64, as such words."""
    c = np.asarray(counter, dtype=np.uint64)
    word, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for i in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        keys = [
            np.uint64((k + i * step) % 2**32)
            for k, step in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True)
        ]
        c = np.stack([b >> half ^ c[1] ^ keys[0], b & word, a >> half ^ c[3] ^ keys[1], a & word])
    return c


def normals(seed: int, matrix: int, entry: int, n: int, columns: int) -> np.ndarray[Any, Any]:
    """Return the random block (n, columns) of one entry of the batch of one matrix, float64.

    Box and Muller, "A note on the generation of random normal deviates", Annals of Mathematical
    Statistics 29 (1958), of the words of counter (row, column // 4, entry, matrix), two and two:
    23 bits of the first are the radius, of the second the angle in its quadrant.
    """
    row, group = np.meshgrid(np.arange(n), np.arange(-(-columns // 4)), indexing="ij")
    counter = np.stack([row, group, np.full_like(row, entry), np.full_like(row, matrix)])
    words = philox(counter, (seed % 2**32, seed >> 32)).astype(np.int64)
    radius, angle = words[::2], words[1::2]
    r = np.sqrt(-2 * np.log((radius // 2**9 * 2 + 1) / 2**24))
    a = ((angle // 2**7 % 2**23 * 2 + 1) / 2**24 - 0.5) * np.pi / 2
    r = np.where(angle // 2**30 % 2, -r, r)
    swapped = angle // 2**31 == 1
    pairs = np.stack(
        [np.where(swapped, f(a), g(a)) * r for f, g in [(np.sin, np.cos), (np.cos, np.sin)]]
    )
    # (first or second of a pair, pair, row, group) -> (row, group, pair, first or second)
    block: np.ndarray[Any, Any] = pairs.transpose(2, 3, 1, 0).reshape(n, -1)[:, :columns]
    return block
