"""What products with a decomposed matrix cost on a GPU, counted: bytes, operations and launches.

A launch takes LAUNCH_SECONDS and then the longest of its bytes over the memory's bandwidth, its
bytes over the L2 cache's, and its operations over the rate of the unit that does them. Rates are
NVIDIA's for the H100 SXM (data sheet, dense); those of the cache and of a launch are assumptions.
Nothing here is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spectral_kernels.runtime.triton.host import cdiv, next_power_of_2

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


def forward_seconds(problem: Problem, tiles: Tiles) -> float:
    """Return the time of ``usv_forward``: programs in waves, each reads all factors."""
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
    """Return the time of ``usv_backward``, with the launches for counters and dSigma."""
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
    """Return the time of torch's products, which the fused kernel must beat.

    Those of ``split_products`` for bfloat16, of ``torch_backend`` in float32 otherwise, where
    tensors of float16 are converted first.
    """
    rows, k = problem.batch * problem.p, problem.k
    exact, with_float32 = [problem.n], [problem.m]
    if direction == "backward":
        exact, with_float32 = [problem.m, problem.n], [problem.n, problem.m, problem.n]
    entry = problem.entry_bytes if problem.split else 4
    rate = BFLOAT16_PER_S if problem.split else FLOAT32_PER_S
    twice = 2 if problem.split else 1
    launches = [(side, 1) for side in exact] + [(side, twice) for side in with_float32]
    seconds = sum(
        max(
            entry * (rows + problem.batch * k) * side / MEMORY_BYTES_PER_S,
            2 * rows * k * side * times / rate,
        )
        for side, times in launches
    )
    # What is k wide: products with Sigma, halves, conversions; launches more than work.
    small = {"forward": 1, "backward": 3}[direction]
    if problem.split:
        small *= 7
    elif problem.entry_bytes == 2:
        converted = problem.entries + problem.factors
        if direction == "backward":
            converted += rows * problem.n + problem.factors
        seconds += 6 * converted / MEMORY_BYTES_PER_S
        small += {"forward": 5, "backward": 9}[direction]
    return seconds + (len(launches) + small) * LAUNCH_SECONDS
