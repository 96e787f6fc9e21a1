"""How the authors of "Spectral dynamics of weights" compute the alignment of two layers.

Their rules, written down anew in NumPy from ``evaluate_run.py`` and ``plot_run.py`` of each task
of github.com/dyunis/spectral_dynamics: the truth for `test_authors_rules`. Weights are given by
name as in a state dict, float64.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def attention(weights: Mapping[str, Array], first: str, second: str, heads: int) -> Array:
    """Of a Transformer with fused weights (modular_addition, language_modeling)."""
    A, B = weights[first], weights[second]
    d = A.shape[1]
    if first == second:
        Q, K = A[:d].reshape(heads, d // heads, d), A[d : 2 * d].reshape(heads, d // heads, d)
        (U, _, _), (other, _, _) = (
            np.linalg.svd(Q, full_matrices=False),
            np.linalg.svd(K, full_matrices=False),
        )
        similarity = np.abs(U.transpose(0, 2, 1) @ other)
        return np.diagonal(similarity, axis1=1, axis2=2).mean(axis=0)
    if "in_proj_weight" in first and "out_proj" in second:
        A = A[-d:]
    return _diagonal(A, B, reads_table="embed" in first)


def speech(weights: Mapping[str, Array], first: str, second: str) -> Array:
    """Of a bidirectional LSTM and its output (speech_recognition), the gate that is plotted.

    Their code takes the first half of the output's weight for both directions, as the name of that
    weight does not say "reverse"; here the half is that of the direction that feeds it.
    """
    A, B = weights[first], weights[second]
    half = B.shape[1] // 2
    if A.shape[0] // B.shape[1] == 2:
        B = B[:, half:] if "reverse" in first else B[:, :half]
    U, Vh = _left(A), _right(B)
    if len(U) != Vh.shape[1]:
        U = U.reshape(4, len(U) // 4, -1)[2]
    return np.abs(np.diagonal(Vh @ U))


def unet(weights: Mapping[str, Array], first: str, second: str) -> Array:
    """Of a network of convolutions (image_generation), at the kernel's centre."""
    A, B = (
        w.swapaxes(0, 1) if "tconv" in name else w
        for name, w in ((first, weights[first]), (second, weights[second]))
    )
    U, Vh = _left(A.reshape(len(A), -1)), _right(B.reshape(len(B), -1))
    taps = Vh.reshape(len(Vh), *B.shape[1:])
    return np.abs(np.diagonal(taps[:, :, B.shape[2] // 2, B.shape[3] // 2] @ U))


def _diagonal(A: Array, B: Array, *, reads_table: bool) -> Array:
    U = _right(A).T if reads_table else _left(A)
    return np.abs(np.diagonal(_right(B) @ U))


def _left(A: Array) -> Array:
    U: Array = np.linalg.svd(A, full_matrices=False)[0]
    return U


def _right(A: Array) -> Array:
    Vh: Array = np.linalg.svd(A, full_matrices=False)[2]
    return Vh
