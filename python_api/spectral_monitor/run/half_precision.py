"""Arrays of a frame in 16 bits a number: a scale for each array, and the rounding in the bounds.

A number x >= 0 of an array with the largest entry c is kept as the integer round(q sqrt(x / c)),
q = 65533, and comes back as c (integer / q)^2: off by at most

    c (sqrt(x / c) / q + 1 / (4 q^2)),

1.5e-5 of c for the largest numbers and 6e-11 of c for the smallest, where half-precision floats
have 2.4e-4 of c and, below 6e-5, nothing better than 3e-8. Bounds are rounded up, and those of
singular values have that of the values added. Two codes are infinity and NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from spectral_monitor.step.joined_arrays import Array

K = TypeVar("K")
_Q = 65533
_INFINITE, _NAN = 65534, 65535


class HalfPrecision:
    """Encodes records of columns.

    Args:
        lengths: of each column.
        values: which columns are singular values, each with the column of their bounds, or None.
        bounds: which are bounds of something.
        dtype: of what comes back, float32 or float64.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        values: Mapping[int, int | None],
        bounds: Sequence[int],
        dtype: npt.DTypeLike,
    ) -> None:
        self._dtype = np.dtype(dtype)
        sizes = np.array(lengths, dtype=np.int64)
        ends = np.cumsum(sizes)
        starts = ends - sizes
        self._column = np.repeat(np.arange(len(sizes)), sizes)
        self._filled = np.flatnonzero(sizes)
        self._starts = starts[self._filled]
        self._largest = np.zeros(len(sizes), dtype=self._dtype)
        of = [(i, j) for i, j in values.items() if j is not None]
        places = [np.arange(s, e) for s, e in zip(starts, ends, strict=True)]
        none = np.zeros(0, dtype=np.int64)
        self._values = np.concatenate([none, *(places[i] for i, _ in of)])
        self._bounds_of = np.concatenate([none, *(places[j] for _, j in of)])
        self._bounds = np.concatenate([none, *(places[j] for j in bounds)])

    def encode(self, numbers: Array) -> tuple[Array, npt.NDArray[np.uint16]]:
        """Scales of all columns, and codes of all numbers (total,)."""
        x = np.abs(numbers).astype(self._dtype, copy=False)
        finite = x
        if not np.isfinite(x.sum(dtype=np.float64)):
            finite = np.where(np.isfinite(x), x, x.dtype.type(0))
        if len(self._bounds):
            if finite is x:
                finite = x.copy()
            scale = self._scales(finite)[self._column[self._values]]
            values = finite[self._values]
            # sqrt(x c) is what the code times c / q comes to, without a code.
            finite[self._bounds_of] += self._rounding(values, scale)
            # Once more for what is rounded here and where it is read.
            finite[self._bounds] *= 1 + 8 * np.finfo(self._dtype).eps
        scales = self._scales(finite)
        whole = np.where(scales > 0, scales, scales.dtype.type(1))[self._column]
        roots = np.sqrt(finite / whole)
        roots *= _Q
        codes = np.rint(roots)
        codes[self._bounds] = np.ceil(roots[self._bounds])
        codes = np.minimum(codes, _Q).astype(np.uint16)
        if not np.isfinite(x.sum(dtype=np.float64)):
            codes[np.isinf(x)] = _INFINITE
            codes[np.isnan(x)] = _NAN
        return scales, codes

    def _scales(self, finite: Array) -> Array:
        self._largest[self._filled] = np.maximum.reduceat(finite, self._starts)
        return self._largest.copy()

    @staticmethod
    def _rounding(values: Array, scale: Array) -> Array:
        """`rounding_error` of the codes that these values will have, or more."""
        half = 0.5 / _Q
        return np.asarray(
            1.02 * (2 * half * np.sqrt(values) * np.sqrt(scale) + 3 * half * half * scale)
        )


def decode(codes: Array, scale: Array, dtype: npt.DTypeLike) -> Array:
    """(T, r) numbers from codes and (T,) scales."""
    values = np.square(codes / _Q) * scale[:, None].astype(np.float64)
    values[codes == _INFINITE] = np.inf
    values[codes == _NAN] = np.nan
    return values.astype(dtype)


def rounding_error(codes: Array, scale: Any) -> Array:
    """How far numbers are off at most that have these codes; of the shape of both."""
    half = 0.5 / _Q
    # The hundredth more is for what comes back as float32.
    return np.asarray(1.01 * scale * (2 * half * np.minimum(codes / _Q, 1.0) + half * half))


class Decoded(Mapping[K, Array]):
    """Name -> (T, length) of recorded columns, decoded when they are asked for.

    Args:
        codes: (T, total), such as a memory map.
        scales: (T, columns).
        columns: name -> which column, and where it lies.
        dtype: of what comes back.
    """

    def __init__(
        self, codes: Any, scales: Any, columns: Mapping[K, tuple[int, slice]], dtype: Any
    ) -> None:
        self._codes, self._scales, self._columns, self._dtype = codes, scales, columns, dtype
        self._last: tuple[K, Array] | None = None

    def __getitem__(self, name: K) -> Array:
        if self._last is None or self._last[0] != name:
            codes, scale = self._of(name)
            self._last = (name, decode(codes, scale, self._dtype))
        return self._last[1]

    def errors(self, name: K) -> Array:
        """(T, length): how far the numbers of a column may be off by their rounding."""
        codes, scale = self._of(name)
        return rounding_error(codes, scale[:, None].astype(np.float64))

    def __iter__(self) -> Iterator[K]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return f"Decoded({list(self._columns)}, {self._dtype})"

    def _of(self, name: K) -> tuple[Array, Array]:
        i, place = self._columns[name]
        return np.asarray(self._codes[:, place]), np.asarray(self._scales[:, i])
