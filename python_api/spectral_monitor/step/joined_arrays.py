"""Many named arrays in one, which costs a step one copy instead of one for each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
K = TypeVar("K")


def consecutive(names: Sequence[K], lengths: Sequence[int]) -> dict[K, slice]:
    """Name -> where its entries lie, one after the other."""
    ends = itertools.accumulate(lengths, initial=0)
    return {
        name: slice(start, stop)
        for name, (start, stop) in zip(names, itertools.pairwise(ends), strict=True)
    }


class JoinedArrays(Mapping[K, Array]):
    """Name -> array (length,), a view made when it is asked for.

    Args:
        block: one-dimensional, all arrays one after the other, in order and without gaps.
        slices: where each lies; the same object for every step of a monitor.
    """

    __slots__ = ("block", "slices")

    def __init__(self, block: Array, slices: dict[K, slice]) -> None:
        self.block = block
        self.slices = slices

    def __getitem__(self, name: K) -> Array:
        return self.block[self.slices[name]]

    def __iter__(self) -> Iterator[K]:
        return iter(self.slices)

    def __len__(self) -> int:
        return len(self.slices)

    def __repr__(self) -> str:
        return f"JoinedArrays({list(self.slices)}, {self.block.dtype})"

    @staticmethod
    def of(arrays: Mapping[K, Array]) -> JoinedArrays[K]:
        """The arrays joined, in one dtype; as it is where it is views already."""
        if isinstance(arrays, JoinedArrays):
            return arrays
        parts = list(arrays.values())
        slices = consecutive(list(arrays), [len(part) for part in parts])
        return JoinedArrays(np.concatenate(parts) if parts else np.zeros(0), slices)
