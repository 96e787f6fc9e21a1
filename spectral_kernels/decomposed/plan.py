"""Which way a product with a decomposed matrix goes on a GPU, and with which tiles.

Not measured. The decision compares a model of both ways: a launch costs LAUNCH_SECONDS, and then the
largest of bytes over bandwidth, bytes over the L2 cache's bandwidth, and operations over the rate of
the unit that does them. Rates are NVIDIA's for the H100 SXM (data sheet, dense), the cache's an
assumption. ``overriding`` puts other tiles in place, for benchmarks.

Tiles are the largest of those tried ahead of time that no register spills with (tests/data).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from spectral_kernels.triton_runtime import cdiv, next_power_of_2

Tiles = dict[str, int]
Direction = Literal["forward", "backward"]

MEMORY_BYTES_PER_S = 3.35e12
CACHE_BYTES_PER_S = 5.5e12
MULTIPROCESSORS = 132
# What a multiprocessor can take in: 64 bytes a clock at 1.7 GHz.
MULTIPROCESSOR_BYTES_PER_S = 64 * 1.7e9
BFLOAT16_PER_S = 989e12
TF32_PER_S = 495e12
FLOAT32_PER_S = 67e12
LAUNCH_SECONDS = 5e-6
# Bytes of x and g of one chunk. While one is projected the one before it is reduced, read for the
# last time: about one and a half are wanted in the cache, of which the H100 has 50 MB; but what both
# of its halves read, both keep.
CHUNK_BYTES = 17e6


@dataclass(frozen=True)
class Problem:
    """Sizes of one product: x (batch, p, n), U (batch, m, k), Vh (batch, k, n)."""

    batch: int
    p: int
    m: int
    n: int
    k: int
    entry_bytes: int
    split: bool
    """Whether factors are bfloat16, so that float32 goes times them as two of that."""
    hopper: bool
    """Whether operands of products stay in shared memory; before, they need registers."""

    @property
    def width(self) -> int:
        """k padded to what tiles can have."""
        return max(16, next_power_of_2(self.k))

    @property
    def widest(self) -> int:
        """The largest width whose tiles do not spill."""
        return 128 if self.hopper and self.split else 64

    @property
    def entries(self) -> int:
        """Entries of x and y together."""
        return self.batch * self.p * (self.m + self.n)

    @property
    def factors(self) -> int:
        """Entries of U and Vh."""
        return self.batch * self.k * (self.m + self.n)


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


def forward_seconds(problem: Problem, tiles: Tiles) -> float:
    """Return the model's time of ``usv_forward``: programs in waves, each reads all factors."""
    programs = problem.batch * cdiv(problem.p, tiles["BLOCK_P"])
    factors = problem.factors // problem.batch * problem.entry_bytes
    own = tiles["BLOCK_P"] * (problem.m + problem.n) * problem.entry_bytes + factors
    waves = cdiv(programs, MULTIPROCESSORS)
    return LAUNCH_SECONDS + max(
        (problem.entries + problem.factors) * problem.entry_bytes / MEMORY_BYTES_PER_S,
        programs * own / CACHE_BYTES_PER_S,
        waves * own / MULTIPROCESSOR_BYTES_PER_S,
        _operations_seconds(problem, exact=problem.n, with_float32=problem.m),
    )


def backward_bytes(problem: Problem, tiles: Tiles) -> tuple[float, float]:
    """Return the bytes that ``usv_backward`` moves from and to memory, and through the cache."""
    e, rows = problem.entry_bytes, problem.batch * problem.p
    dx = rows * problem.n * e
    memory = problem.entries * e + dx + 2 * problem.factors * e
    width = tiles["BLOCK_K"]
    # A row of a and of d: as parts, written and read, and as planes, read by each block of columns.
    parts = 2 * rows * width * 4 * 2 * tiles["SPLITS"]
    planes = rows * width * 4 * (problem.m + problem.n) / tiles["BLOCK_C"]
    factors = cdiv(problem.p, tiles["BLOCK_P"]) * problem.factors * e
    sums = cdiv(problem.p, tiles["CHUNK"]) * problem.factors * 4 * 2
    return memory, 2 * problem.entries * e + dx + parts + planes + factors + sums


def backward_seconds(problem: Problem, tiles: Tiles) -> float:
    """Return the model's time of ``usv_backward``, with the launches for counters and dSigma."""
    memory, cache = backward_bytes(problem, tiles)
    m, n = problem.m, problem.n
    return 4 * LAUNCH_SECONDS + max(
        memory / MEMORY_BYTES_PER_S,
        cache / CACHE_BYTES_PER_S,
        _operations_seconds(problem, exact=m + n, with_float32=2 * n + m),
    )


def _operations_seconds(problem: Problem, exact: int, with_float32: int) -> float:
    """Return the time of products of columns with k numbers, exact ones and those of float32."""
    one = 2 * problem.batch * problem.p * problem.width
    if problem.split:
        return one * (exact + 2 * with_float32) / BFLOAT16_PER_S
    exact_seconds = exact / BFLOAT16_PER_S if problem.entry_bytes == 2 else 3 * exact / TF32_PER_S
    return one * (exact_seconds + 3 * with_float32 / TF32_PER_S)


def products_seconds(direction: Direction, problem: Problem) -> float:
    """Return the model's time of torch's products: in float32, 16-bit tensors converted first."""
    rows, k = problem.batch * problem.p, problem.k
    sides = (problem.n, problem.m) if direction == "forward" else _sides(problem)
    launches = [(4 * (rows + problem.batch * k) * side, 2 * rows * k * side) for side in sides]
    # Products with the core.
    launches += [(8 * rows * k, 2 * rows * k * k)] * (1 if direction == "forward" else 3)
    if problem.entry_bytes == 2:
        converted = problem.entries + problem.factors
        if direction == "backward":
            converted += rows * problem.n + problem.factors
        small = 3 if direction == "forward" else 7
        launches += [(6 * converted, 0)] + [(0, 0)] * small
    return sum(
        LAUNCH_SECONDS + max(moved / MEMORY_BYTES_PER_S, operations / FLOAT32_PER_S)
        for moved, operations in launches
    )


def _sides(problem: Problem) -> tuple[int, ...]:
    return (problem.m, problem.n, problem.n, problem.m, problem.n)
