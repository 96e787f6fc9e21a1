"""Which way usv_matmul goes on a GPU: tiles that fit together, and bytes counted by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectral_kernels.factored import cost, tiling
from spectral_kernels.factored.cost import Problem

SIDES = st.integers(1, 20_000)
PROBLEMS = st.builds(
    Problem,
    batch=st.integers(1, 64),
    p=st.integers(1, 2**20),
    m=SIDES,
    n=SIDES,
    k=st.integers(1, 64),
    entry_bytes=st.just(2),
    split=st.booleans(),
    hopper=st.booleans(),
)


def problem(p: int = 8192, m: int = 4096, n: int = 4096, k: int = 64, **changed: int) -> Problem:
    fixed = {"batch": 1, "entry_bytes": 2, "split": True, "hopper": True}
    return Problem(p=p, m=m, n=n, k=k, **{**fixed, **changed})


@given(given=PROBLEMS)
def test_tiles_fit_together(given: Problem) -> None:
    tiles = tiling.backward_tiles(given)
    for name, size in tiles.items():
        assert name.startswith("num_") or size & (size - 1) == 0, f"{name} = {size}"
    for part, whole in (("BLOCK_P", "CHUNK"), ("BLOCK_R", "CHUNK"), ("BLOCK_F", "BLOCK_P")):
        assert tiles[whole] % tiles[part] == 0
    assert min(tiles[name] for name in ("BLOCK_F", "BLOCK_R", "BLOCK_S", "BLOCK_C")) >= 16
    assert tiles["BLOCK_K"] >= max(16, given.k)
    fitting = tiling.CHUNK_BYTES / ((given.m + given.n) * given.entry_bytes)
    assert tiles["BLOCK_P"] <= tiles["CHUNK"] <= max(fitting, tiles["BLOCK_P"])
    assert 1 <= tiles["SPLITS"] <= 8
    assert tiling.forward_tiles(given)["BLOCK_P"] >= 16


def test_tiles_of_the_large_case() -> None:
    """1,024 rows of 8,192 numbers of two bytes are 16.8 MB; a round is 64 + 64 pieces."""
    tiles = tiling.backward_tiles(problem())
    assert (tiles["CHUNK"], tiles["SPLITS"]) == (1024, 4)
    projections = 2 * tiles["SPLITS"] * tiles["CHUNK"] // tiles["BLOCK_P"]
    assert (projections, 8192 // tiles["BLOCK_C"]) == (64, 64)


def test_bytes_of_the_large_case() -> None:
    tiles = tiling.backward_tiles(problem())
    memory, cache = cost.backward_bytes(problem(), tiles)
    block = 8192 * 4096 * 2
    factors = 64 * 8192 * 2
    # x, g and dx once; U, Vh and their gradients.
    assert memory == 3 * block + 2 * factors
    # x and g twice; a and d in four parts written and read, then as two planes by 64 blocks of
    # columns; the factors by 64 blocks of rows; float32 sums of eight chunks written and read.
    k_wide = 8192 * 64
    planes = 2 * 2 * k_wide * 64 // 2
    assert cache == 5 * block + 2 * k_wide * 4 * 2 * 4 + planes * 2 + 64 * factors + 8 * 4 * factors


def test_products_where_these_are_thought_faster() -> None:
    # float32, few rows: a program reads a whole side alone.
    few = problem(p=16, split=False, entry_bytes=4)
    assert tiling.choose("forward", few, fused=False) is None
    assert tiling.choose("forward", few, fused=True) is not None
    assert tiling.choose("forward", problem(), fused=False) == tiling.forward_tiles(problem())
    assert tiling.choose("backward", problem(), fused=False) == tiling.backward_tiles(problem())
    # Beyond the widest tiles not even on demand.
    for wide in (problem(k=129), problem(k=65, split=False), problem(k=65, hopper=False)):
        assert tiling.choose("forward", wide, fused=True) is None
        assert tiling.choose("backward", wide, fused=True) is None


FLOAT32 = {"split": False, "entry_bytes": 4}


@pytest.mark.parametrize(
    ("direction", "case", "fused_us", "products_us"),
    [
        # A row of small factors: one launch of 5 us against two products and one with Sigma; the
        # program takes in 24.6 kB at 109 GB/s.
        ("forward", problem(1, 128, 128, 8, **FLOAT32), 5.23, 15.0),
        # A row of large ones: the one program takes in 2.1 MB of padded rows and 8.4 MB of factors
        # alone, which all multiprocessors share where torch multiplies.
        ("forward", problem(1, 16384, 16384, 64, **FLOAT32), 101.4, 17.5),
        # 587 MB through the cache (test_bytes_of_the_large_case) and four launches, against five
        # passes over 67 MB in memory and 26 launches.
        ("backward", problem(), 128.6, 231.3),
        # 2.1 GB a pass: five through the cache, and with them 4.3 GB of planes, 4.3 GB of sums of
        # 256 chunks, 2.1 GB of factors and 0.5 GB of eight parts, against five from memory.
        ("backward", problem(65536, 16384, 16384, 64), 4022.0, 3339.0),
    ],
)  # fmt: skip
def test_the_faster_by_a_count_by_hand_is_chosen(
    direction: cost.Direction, case: Problem, fused_us: float, products_us: float
) -> None:
    tiles = tiling.choose(direction, case, fused=True)
    assert tiles is not None
    seconds = cost.forward_seconds if direction == "forward" else cost.backward_seconds
    # What is counted by hand leaves out less than a hundredth.
    assert 1e6 * seconds(case, tiles) == pytest.approx(fused_us, rel=0.01)
    assert 1e6 * cost.products_seconds(direction, case) == pytest.approx(products_us, rel=0.01)
    chosen = tiling.choose(direction, case, fused=False)
    assert chosen == (tiles if fused_us < products_us else None)


def test_overriding_ends() -> None:
    with tiling.overriding("forward", None):
        assert tiling.choose("forward", problem(), fused=True) is None
        assert tiling.choose("backward", problem(), fused=True) is not None
        with tiling.overriding("forward", {"BLOCK_P": 16}):
            assert tiling.choose("forward", problem(), fused=False) == {"BLOCK_P": 16}
        assert tiling.choose("forward", problem(), fused=True) is None
    assert tiling.choose("forward", problem(), fused=True) is not None
