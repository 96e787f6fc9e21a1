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


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("split", [True, False])
def test_the_faster_by_the_count_is_chosen(direction: cost.Direction, split: bool) -> None:
    seconds = {"forward": cost.forward_seconds, "backward": cost.backward_seconds}[direction]
    make = {"forward": tiling.forward_tiles, "backward": tiling.backward_tiles}[direction]
    chosen = set()
    for p in (1, 64, 1024, 8192, 65536):
        for side in (128, 1024, 4096, 16384):
            for k in (8, 32, 64):
                case = problem(p, side, side, k, split=split, entry_bytes=2 if split else 4)
                tiles = make(case)
                faster = seconds(case, tiles) <= cost.products_seconds(direction, case)
                assert (tiling.choose(direction, case, fused=False) == tiles) == faster
                chosen.add(faster)
    assert True in chosen


def test_overriding_ends() -> None:
    with tiling.overriding("forward", None):
        assert tiling.choose("forward", problem(), fused=True) is None
        assert tiling.choose("backward", problem(), fused=True) is not None
        with tiling.overriding("forward", {"BLOCK_P": 16}):
            assert tiling.choose("forward", problem(), fused=False) == {"BLOCK_P": 16}
        assert tiling.choose("forward", problem(), fused=True) is None
    assert tiling.choose("forward", problem(), fused=True) is not None
