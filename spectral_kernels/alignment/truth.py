"""What is right: alignments of singular vectors, NumPy float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from spectral_kernels.entry.results import SVD

Float64 = np.ndarray[Any, np.dtype[np.float64]]


def alignment_matrix(U: np.ndarray[Any, Any], Vh_next: np.ndarray[Any, Any]) -> Float64:
    """Return |<u_j, v'_k>| (..., r, r'): Eq. 3 of Yunis et al."""
    U, Vh_next = np.asarray(U, dtype=np.float64), np.asarray(Vh_next, dtype=np.float64)
    matrix: Float64 = np.abs(np.swapaxes(U, -2, -1) @ np.swapaxes(Vh_next, -2, -1))
    return matrix


def alignment_diagonal(U: np.ndarray[Any, Any], Vh_next: np.ndarray[Any, Any], k: int) -> Float64:
    """Return the first k entries of the diagonal of ``alignment_matrix``, or all there are."""
    diagonal: Float64 = np.diagonal(alignment_matrix(U, Vh_next), axis1=-2, axis2=-1)
    return diagonal[..., :k]


def agreement(a: SVD, b: SVD, k: int) -> Float64:
    """Return |u_i . u'_i| |v_i . v'_i|, the diagonal of Eq. 5 of Yunis et al."""
    left = alignment_diagonal(a.U, np.swapaxes(b.U, -2, -1), k)
    right = alignment_diagonal(np.swapaxes(a.Vh, -2, -1), b.Vh, k)
    return left * right


def subspace_overlap(Q_a: np.ndarray[Any, Any], Q_b: np.ndarray[Any, Any]) -> Float64:
    """Return ||Q_a^T Q_b||_F^2 / min(k_a, k_b)."""
    Q_a, Q_b = np.asarray(Q_a, dtype=np.float64), np.asarray(Q_b, dtype=np.float64)
    squares: Float64 = ((np.swapaxes(Q_a, -2, -1) @ Q_b) ** 2).sum(axis=(-2, -1))
    overlap: Float64 = squares / min(Q_a.shape[-1], Q_b.shape[-1])
    return overlap


def clusters(S: np.ndarray[Any, Any], radius: np.ndarray[Any, Any]) -> list[list[int]]:
    """Return the chains of overlapping intervals S +- radius of one descending spectrum (k,)."""
    chains: list[list[int]] = []
    for i in range(len(S)):
        if i and S[i - 1] - radius[i - 1] <= S[i] + radius[i]:
            chains[-1].append(i)
        else:
            chains.append([i])
    return chains


def subspace_agreement(a: SVD, b: SVD, chains: list[list[int]]) -> Float64:
    """Return sqrt(overlap of the left subspaces times that of the right) for every index."""
    values = np.empty(sum(map(len, chains)))
    for chain in chains:
        left = subspace_overlap(a.U[:, chain], b.U[:, chain])
        right = subspace_overlap(a.Vh[chain].T, b.Vh[chain].T)
        values[chain] = np.sqrt(left * right)
    return values
