"""Singular values on CUDA, with their summaries: which kernel, on what, in how many launches.

Matrices of one shape and type go in one launch, a block for each. By size:

- what fits shared memory as it is: bidiagonalised there (csrc/cuda/bidiagonal.cu);
- float32 and less with a longer side: Gram matrix of the short side in float64, whose tridiagonal
  form fits (csrc/cuda/gram_values.cu);
- beyond: ``svd.larger`` for float32, ``torch.linalg`` for float64.

The kernels write the table of ranks and norms themselves, so a summary is no launch more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_kernels import dispatch, numerics
from spectral_kernels.cuda import launcher
from spectral_kernels.numerics import DTYPE_CODES, default_rtol, result_dtype
from spectral_kernels.results import METRICS
from spectral_kernels.svd import larger, torch_backend

# Most rows -> kernel and the threads that its registers allow.
_BIDIAGONAL = {
    torch.float32: (
        (32, "bidiagonal_float_1", 512),
        (64, "bidiagonal_float_2", 512),
        (128, "bidiagonal_float_4", 512),
        (256, "bidiagonal_float_8", 512),
    ),
    torch.float64: (
        (32, "bidiagonal_double_1", 512),
        (64, "bidiagonal_double_2", 512),
        (128, "bidiagonal_double_4", 512),
        (256, "bidiagonal_double_8", 384),
        (512, "bidiagonal_double_16", 256),
    ),
}
_GRAM = (
    (32, "gram_values_1", 512),
    (64, "gram_values_2", 512),
    (128, "gram_values_4", 512),
    (192, "gram_values_6", 384),
)

# Columns of a warp. Not measured. A step of n - j columns is, for each warp, some 75 instructions
# for four of its columns and as many as 200 between barriers that all warps do alike; with 16
# columns at the start the two are about equal on average. More warps wait less for each other's
# loads, fewer leave room for more blocks on a multiprocessor: for 64 x 64 float32 four warps and
# 23 KB are eight blocks of 62 registers a thread, which a thousand matrices fill once.
_COLUMNS_PER_WARP = 16


@dataclass(frozen=True)
class Plan:
    """A launch for matrices of one shape: which kernel, threads and shared memory of a block."""

    kernel: str
    threads: int
    shared_bytes: int

    @property
    def from_gram(self) -> bool:
        """Whether the kernel is given Gram matrices."""
        return self.kernel.startswith("gram")


def plan(dtype: torch.dtype, m: int, n: int, shared_limit: int) -> Plan | None:
    """Return the launch for (m, n) matrices of ``dtype``, None where no kernel can.

    Args:
        dtype: any that ``svdvals`` takes.
        m: rows, at least one.
        n: columns, at least one.
        shared_limit: bytes of shared memory that a block may have.
    """
    rows, short = max(m, n), min(m, n)
    result = result_dtype(dtype)
    for most_rows, kernel, most_threads in _BIDIAGONAL[result]:
        if rows <= most_rows:
            for threads in _threads(short, most_threads):
                size = _bidiagonal_bytes(rows, short, threads, result)
                if size <= shared_limit:
                    return Plan(kernel, threads, size)
            break
    if result == torch.float64:
        return None
    for most_rows, kernel, most_threads in _GRAM:
        if short <= most_rows:
            threads = _threads(short, most_threads)[0]
            size = _gram_bytes(short, threads)
            return Plan(kernel, threads, size) if size <= shared_limit else None
    return None


def svdvals(matrices: list[Tensor]) -> list[Tensor]:
    """Return the singular values (..., r) of each matrix (..., m, n)."""
    values: list[Tensor] = [torch.empty(0)] * len(matrices)
    for group in _groups(matrices):
        _share(_Group([matrices[i] for i in group]).values(), values, group)
    return values


def svdvals_with_tables(
    matrices: list[Tensor], rtol: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the singular values and the float64 table (..., 7) of each matrix (..., m, n).

    Columns and ``rtol`` are those of the rank backends' ``summary_tables``.
    """
    values: list[Tensor] = [torch.empty(0)] * len(matrices)
    tables = list(values)
    for group in _groups(matrices):
        spectra, rows = _Group([matrices[i] for i in group]).values_and_tables(rtol)
        _share(spectra, values, group)
        _share(rows, tables, group)
    return values, tables


def _groups(matrices: list[Tensor]) -> list[list[int]]:
    """Return the indices of the tensors of each shape (m, n) and type."""
    groups: dict[tuple[torch.dtype, int, int], list[int]] = {}
    for i, A in enumerate(matrices):
        groups.setdefault((A.dtype, A.shape[-2], A.shape[-1]), []).append(i)
    return list(groups.values())


def _share(parts: list[Tensor], results: list[Tensor], group: list[int]) -> None:
    for part, i in zip(parts, group, strict=True):
        results[i] = part


class _Group:
    """Tensors (..., m, n) of one shape and type, and the launch for them."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors
        self.m, self.n = tensors[0].shape[-2:]
        self.r = min(self.m, self.n)
        # One launch needs one stride from matrix to matrix.
        parts = [A.flatten(0, -3) if A.dim() > 2 else A.unsqueeze(0) for A in tensors]
        self.A = parts[0] if len(parts) == 1 else torch.cat(parts)
        self.dtype = result_dtype(self.A.dtype)

    def values(self) -> list[Tensor]:
        """Return S (..., r) of each tensor."""
        S, _ = self._solve(None)
        return self._parts(S)

    def values_and_tables(self, rtol: float) -> tuple[list[Tensor], list[Tensor]]:
        """Return S (..., r) and the table (..., 7) of each tensor."""
        S, table = self._solve(rtol)
        assert table is not None
        return self._parts(S), self._parts(table)

    def _solve(self, rtol: float | None) -> tuple[Tensor, Tensor | None]:
        A = self.A
        S = A.new_empty((A.shape[0], self.r), dtype=self.dtype)
        table = None if rtol is None else S.new_zeros((A.shape[0], len(METRICS)), dtype=torch.float64)
        if A.numel() == 0:
            return S, table
        launch = plan(A.dtype, self.m, self.n, launcher.limits().shared_bytes)
        if launch is None:
            return self._solve_by_torch(rtol)
        threshold = 0.0 if rtol is None else rtol
        if threshold < 0:
            threshold = default_rtol(self.m, self.n, self.dtype)
        if launch.from_gram:
            gram_values(launch, larger.gram(A), S, table, threshold)
        else:
            bidiagonal_values(launch, A, S, table, threshold)
        return S, table

    def _solve_by_torch(self, rtol: float | None) -> tuple[Tensor, Tensor | None]:
        if self.dtype == torch.float64:
            (S,) = torch_backend.svdvals([self.A])
        else:
            S = larger.svdvals(self.A)
        if rtol is None:
            return S, None
        ranks = dispatch.backend("rank", S.device.type)
        (table,) = ranks.summary_tables([S], [(self.m, self.n)], rtol)
        return S, table

    def _parts(self, whole: Tensor) -> list[Tensor]:
        """Return the rows of each tensor, in memory of their own."""
        width = whole.shape[-1]
        if len(self.tensors) == 1:
            return [whole.view(*self.tensors[0].shape[:-2], width)]
        counts = [math.prod(A.shape[:-2]) for A in self.tensors]
        parts = [whole.new_empty(*A.shape[:-2], width) for A in self.tensors]
        views = [
            rows.view(part.shape) for rows, part in zip(whole.split(counts), parts, strict=True)
        ]
        # Results of an operator may not share memory; this is one launch for all of them.
        torch._foreach_copy_(parts, views)
        return parts


def bidiagonal_values(
    launch: Plan, A: Tensor, S: Tensor, table: Tensor | None, rtol: float
) -> None:
    """Write S (B, r) and, where given, the table (B, 7) of the matrices A (B, m, n), any strides."""
    count, m, n = A.shape
    stride_b, stride_m, stride_n = A.stride()
    rows, short, stride_rows, stride_short = m, n, stride_m, stride_n
    if m < n:
        rows, short, stride_rows, stride_short = n, m, stride_n, stride_m
    launcher.launch(
        launch.kernel, count, launch.threads, launch.shared_bytes,
        A, S, table, DTYPE_CODES[A.dtype], rows, short, stride_b, stride_rows, stride_short, rtol,
    )  # fmt: skip


def gram_values(
    launch: Plan, gram: Tensor, S: Tensor, table: Tensor | None, rtol: float
) -> None:
    """Write S (B, n) float32 and, where given, the table (B, 7) from ``gram`` (B, n, n) float64."""
    gram = gram.contiguous()
    launcher.launch(
        launch.kernel, gram.shape[0], launch.threads, launch.shared_bytes,
        gram, S, table, gram.shape[-1], rtol,
    )  # fmt: skip


def _threads(columns: int, most: int) -> list[int]:
    """Return numbers of threads, the best first."""
    warps = min(-(-columns // _COLUMNS_PER_WARP), most // 32)
    return [32 * w for w in range(warps, 0, -1)]


def _bidiagonal_bytes(rows: int, n: int, threads: int, dtype: torch.dtype) -> int:
    """Return the shared memory that the head of csrc/cuda/bidiagonal.cu tells."""
    warps, itemsize = threads // 32, dtype.itemsize
    order = n if dtype == torch.float32 else 2 * n
    reduction = itemsize * (n * (rows | 1) + 2 * n + 2 * warps * (rows + 2))
    return 144 + 16 * n + max(reduction, 16 * order + 16 * threads + 8 * n)


def _gram_bytes(n: int, threads: int) -> int:
    """Return the shared memory that the head of csrc/cuda/gram_values.cu tells."""
    return 16 * n + max(8 * (n * (n | 1) + 4 * n), 16 * n + 16 * threads + 8 * n)
