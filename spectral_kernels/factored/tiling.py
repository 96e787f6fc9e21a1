"""Which way a product with a decomposed matrix goes on a GPU, and with which tiles. Not measured.

The decision compares the times of ``cost``. Tiles are the largest of those tried ahead of time
that compile without spilling a register (tests/data/triton_resources). ``overriding`` puts other
tiles in place, for benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from spectral_kernels.factored.cost import (
    MULTIPROCESSORS,
    Direction,
    Problem,
    Tiles,
    backward_seconds,
    forward_seconds,
    products_seconds,
)
from spectral_kernels.runtime.triton.host import cdiv, next_power_of_2

# Bytes of x and g of one chunk. While one is projected the one before it is reduced, read for the
# last time: about one and a half are wanted in the cache, of which the H100 has 50 MB; but what
# both of its halves read, both keep.
CHUNK_BYTES = 17e6


_overrides: dict[Direction, Tiles | None] = {}


@contextmanager
def overriding(direction: Direction, tiles: Tiles | None) -> Iterator[None]:
    """Let every product go with these tiles, or as torch's products (None)."""
    before = dict(_overrides)
    _overrides[direction] = tiles
    try:
        yield
    finally:
        _overrides.clear()
        _overrides.update(before)


def choose(direction: Direction, problem: Problem, *, fused: bool) -> Tiles | None:
    """Return the tiles of the fused kernel, or None for torch's products.

    ``fused`` asks for the kernel wherever it can run, however fast it is thought to be.
    """
    if direction in _overrides:
        return _overrides[direction]
    if problem.width > problem.widest:
        return None
    tiles = forward_tiles(problem) if direction == "forward" else backward_tiles(problem)
    if fused:
        return tiles
    seconds = forward_seconds if direction == "forward" else backward_seconds
    return tiles if seconds(problem, tiles) <= products_seconds(direction, problem) else None


def forward_tiles(problem: Problem) -> Tiles:
    """Return the launch parameters of ``usv_forward``: fewer rows a program where rows are few."""
    rows = 64 if problem.hopper else 32
    if problem.batch * cdiv(problem.p, rows) < MULTIPROCESSORS // 2:
        rows = 16
    wide = problem.split or (problem.hopper and problem.entry_bytes == 2)
    return {
        "BLOCK_P": rows,
        "BLOCK_C": 64 if wide else 32,
        "BLOCK_K": problem.width,
        "num_warps": 4,
        "num_stages": 3 if problem.hopper else 2,
    }


def backward_tiles(problem: Problem) -> Tiles:
    """Return the launch parameters of ``usv_backward``.

    A round of the kernel projects a chunk and reduces the one before it: its pieces should be
    about as many as multiprocessors, which splits the columns of the projections.
    """
    tiles = _blocks(problem)
    tiles["CHUNK"] = chunk_rows(problem, tiles["BLOCK_P"])
    reductions = cdiv(problem.n, tiles["BLOCK_C"]) + cdiv(problem.m, tiles["BLOCK_C"])
    projections = max(MULTIPROCESSORS - reductions, MULTIPROCESSORS // 2)
    splits = projections // (2 * tiles["CHUNK"] // tiles["BLOCK_P"])
    # Of at least 256 columns each; more than eight parts cost more than they bring.
    splits = min(splits, cdiv(max(problem.n, problem.m), 256), 8)
    tiles["SPLITS"] = next_power_of_2(max(1, splits) + 1) // 2
    return tiles


def _blocks(problem: Problem) -> Tiles:
    """Return the largest tiles that compile without spills."""
    if problem.hopper and problem.split:
        narrow = problem.width <= 64
        blocks = {"BLOCK_P": 128, "BLOCK_F": 32 if narrow else 16, "BLOCK_S": 64, "BLOCK_R": 64}
        blocks["BLOCK_C"] = 128 if narrow else 64
    elif problem.split:
        blocks = {"BLOCK_P": 64, "BLOCK_F": 16, "BLOCK_S": 64, "BLOCK_R": 32, "BLOCK_C": 64}
    else:
        size = 64 if problem.hopper else 32
        blocks = {"BLOCK_P": size, "BLOCK_F": 16, "BLOCK_S": 32, "BLOCK_R": 32, "BLOCK_C": size}
    stages = 3 if problem.hopper and problem.split else 2
    return {**blocks, "BLOCK_K": problem.width, "num_warps": 8, "num_stages": stages}


def chunk_rows(problem: Problem, block_p: int) -> int:
    """Return the rows of a chunk: a power of two, whole blocks, within the share of the cache."""
    row_bytes = (problem.m + problem.n) * problem.entry_bytes
    fitting = max(1, int(CHUNK_BYTES // max(row_bytes, 1)))
    return max(block_p, min(next_power_of_2(fitting + 1) // 2, next_power_of_2(problem.p), 4096))
