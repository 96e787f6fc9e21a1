"""What a rank may be: a number of triplets, a share of the full rank, "break-even", or all."""

from __future__ import annotations

from typing import Literal

from spectral_kernels.factored.op import break_even_rank

Rank = int | float | Literal["break-even"] | None


def resolve_rank(rank: Rank, m: int, n: int) -> int:
    """Return the number of triplets that ``rank`` means for an (m, n) matrix.

    Args:
        rank: None for all r = min(m, n); an int, 1 <= rank <= r, as it is; a float, 0 < rank <= 1,
            as the share ``max(1, round(rank * r))``, halves to even, which gives the 12, 25, 50,
            74 and 99 of 99 of "Decomposed Learning and Grokking" (section 4); "break-even" for
            the largest rank whose factors have no more entries than the matrix (eq. 5).
        m: rows of the matrix.
        n: columns of the matrix.

    Raises:
        TypeError: another type, bool among them.
        ValueError: out of range, an empty matrix, or no rank that breaks even.
    """
    full = min(m, n)
    if full < 1:
        raise ValueError(f"a {m} x {n} matrix has no triplets; expected at least 1 x 1")
    if rank is None:
        return full
    if isinstance(rank, str):
        return _break_even(rank, m, n)
    if isinstance(rank, bool) or not isinstance(rank, (int, float)):
        raise TypeError(f"rank is {rank!r}; {_EXPECTED}")
    if isinstance(rank, int):
        if not 1 <= rank <= full:
            raise ValueError(
                f"rank is {rank}; expected 1 <= rank <= min(m, n) = {full} for a {m} x {n} matrix"
            )
        return rank
    if not 0 < rank <= 1:
        raise ValueError(f"rank is {rank!r}; expected a share 0 < rank <= 1 where it is a float")
    return max(1, round(rank * full))


_EXPECTED = 'expected None, an int, a float share of the full rank, or "break-even"'


def _break_even(rank: str, m: int, n: int) -> int:
    if rank != "break-even":
        raise ValueError(f"rank is {rank!r}; {_EXPECTED}")
    largest = break_even_rank(m, n)
    if largest == 0:
        raise ValueError(
            f'rank is "break-even", and even one triplet has {m + n + 1} entries, more than the '
            f"{m * n} of a {m} x {n} matrix; expected a larger matrix or a rank as a number"
        )
    return largest
