"""Ranks as they are asked for, and the parameters that they leave."""

from __future__ import annotations

import pytest
from spectral_monitor.decomposed.layers.ranks import resolve_rank

import spectral_kernels as sk


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        *[(None, 99), (1, 1), (99, 99), (1.0, 99), (1e-9, 1), ("break-even", 46)],
        # The paper's shares of 99 (section 4); 49.5 is rounded to the even 50.
        *[(0.125, 12), (0.25, 25), (0.5, 50), (0.75, 74)],
    ],
)
def test_resolve_rank(rank: object, expected: int) -> None:
    assert resolve_rank(rank, 99, 128) == resolve_rank(rank, 128, 99) == expected


@pytest.mark.parametrize(
    ("rank", "error", "message"),
    [
        (0, ValueError, r"rank is 0; expected 1 <= rank <= min\(m, n\) = 5 for a 5 x 8 matrix"),
        (6, ValueError, "rank is 6; expected 1 <= rank"),
        (0.0, ValueError, r"rank is 0.0; expected a share 0 < rank <= 1"),
        (1.01, ValueError, "rank is 1.01; expected a share"),
        (float("nan"), ValueError, "rank is nan; expected a share"),
        ("half", ValueError, "rank is 'half'; expected None, an int, a float share"),
        (True, TypeError, "rank is True; expected None, an int"),
        ([3], TypeError, r"rank is \[3\]; expected None, an int"),
    ],
)
def test_ranks_that_are_refused(rank: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sk.DecomposedLinear(8, 5, rank=rank)


def test_matrices_without_a_rank() -> None:
    with pytest.raises(ValueError, match="even one triplet has 4 entries, more than the 2"):
        resolve_rank("break-even", 1, 2)
    with pytest.raises(ValueError, match="a 0 x 4 matrix has no triplets"):
        resolve_rank(None, 0, 4)


@pytest.mark.parametrize(
    ("rows", "counts"),
    [
        (99, {None: 32274, 12: 2868, 25: 6300, 50: 13850, 74: 22274, 99: 32274}),
        (5, {1: 134, 2: 270, 3: 408, 4: 548, 5: 690}),
    ],
    ids=["Table 1", "Table 2"],
)
def test_parameter_counts_of_the_paper(rows: int, counts: dict[int | None, int]) -> None:
    for rank, expected in counts.items():
        layer = sk.DecomposedEmbedding(rows, 128, rank=rank)
        assert sum(p.numel() for p in layer.parameters()) == expected
        assert layer.to_embedding().weight.numel() == rows * 128


def test_break_even_has_no_more_parameters() -> None:
    layer = sk.DecomposedLinear(128, 384, False, rank="break-even")
    k, entries = layer.rank, sum(p.numel() for p in layer.parameters())
    assert entries <= 128 * 384 < (k + 1) * (k + 1 + 128 + 384)
