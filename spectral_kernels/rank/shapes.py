"""The shapes of matrices of which only the singular values are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def given_shapes(
    shape: tuple[int, int] | Sequence[tuple[int, int]] | None, tensors: list[Tensor]
) -> list[tuple[int, int]]:
    """Return one (m, n) per spectrum (..., r) of a caller's ``shape``; (r, r) where it is None.

    Raises:
        ValueError: another number of shapes than of spectra, or min(m, n) < r.
    """
    if shape is None:
        return [(S.shape[-1], S.shape[-1]) for S in tensors]
    # A tuple of integers is one shape, anything else a list of shapes.
    shapes: list[Any] = (
        [shape] * len(tensors) if shape and isinstance(shape[0], int) else list(shape)
    )
    if len(shapes) != len(tensors):
        raise ValueError(f"shape lists {len(shapes)} shapes; expected {len(tensors)}, one per S")
    for (m, n), S in zip(shapes, tensors, strict=True):
        if min(m, n) < S.shape[-1]:
            raise ValueError(
                f"shape is {(m, n)}, which has {min(m, n)} singular values; expected at least "
                f"the {S.shape[-1]} of S"
            )
    return shapes
