# ruff: noqa: N999
"""The compiled CPU kernels. Pointers are addresses, strides count elements.

dtype codes: 0 float16, 1 bfloat16, 2 float32, 3 float64. A matrix argument is the eight integers
(a_ptr, dtype, batch, m, n, stride_b, stride_m, stride_n). Every function takes a ragged list of
jobs, releases the GIL and spreads the matrices over ``threads`` threads. Outputs are contiguous,
left vectors transposed (one vector after the other), float64 where the dtype code is 3 and float32
otherwise. A matrix with NaN or Inf gives NaN.
"""

from collections.abc import Sequence

# (*matrix, s_ptr)
_ValuesJob = tuple[int, int, int, int, int, int, int, int, int]
# (*matrix, ut_ptr, s_ptr, vh_ptr); ut (batch, r, m) is U by columns
_VectorsJob = tuple[int, int, int, int, int, int, int, int, int, int, int]
# 18 numbers: (*matrix, start_ptr, given, seed, index, k, l, power_iters, ut_ptr, s_ptr, vh_ptr);
# start (batch, n, given) of the type of the results; the columns from given to l are random
_RandomizedJob = tuple[int, ...]
# (s_ptr, dtype, batch, r, m, n, rtol, out_ptr)
_SummaryJob = tuple[int, int, int, int, int, int, float, int]
# (s_ptr, dtype, batch, r, m, n, rtol, out_ptr, b_ptr, beta_ptr, bounds_ptr); errors of s (batch, r)
# are at most b (batch, r), together beta (batch) in the 2-norm; bounds (batch, 7) are those of out
_BoundedSummaryJob = tuple[int, int, int, int, int, int, float, int, int, int, int]
# (s_ptr, dtype, b_ptr, other_s_ptr, other_b_ptr, r, unseen, follow, first_ptr, alone_ptr): values s
# (r) of errors b (r) float64; those compared with, float64, replaced by them where follow is 1;
# first (r) int64, alone (r) bool
_ClusterJob = tuple[int, int, int, int, int, int, int, int, int, int]
# 12 numbers: (u_ptr, dtype, u_stride_row, u_stride_col, v_ptr, v_stride_row, v_stride_col, length,
# k, out_ptr, first_ptr, cosine_ptr); first (k) int64: the first index of each cluster; both 0 for
# none
_AlignmentJob = tuple[int, ...]
# 20 numbers: (*matrix of batch 1, v_ptr, single, warm, tolerance, drift_ptr, names_ptr, ut_ptr,
# s_ptr, vh_ptr, bounds_ptr, identities_ptr, report_ptr). State, read where warm and then
# overwritten: v (r, r), float32 where single, else float64; drift (1) float64; names (r + 1) int64.
# Results: bounds (r) float64, identities (r) int64 and report (2) float64: work (0 kept, 1 to 3
# rotations, 4 solved, -1 not finite) and the bound of the 2-norm of all errors.
_TrackJob = tuple[int | float, ...]
# 23 numbers: (*matrix of batch 1, k, l, warm, tolerance, block_ptr, start_ptr, fresh_ptr,
# fresh_columns, identities_ptr, ut_ptr, s_ptr, vh_ptr, bounds_ptr, residuals_ptr, report_ptr);
# block and start (n, l) and fresh (n, fresh_columns) of the type of the results, block read where
# warm and then overwritten; identities (l + 1) int64; bounds and residuals (k) and report (5)
# float64: work (0 started anew, 1 to 3 iterations, -1 not finite), iterations, whether A is zero,
# error norm, ||A||_F
_LeadingJob = tuple[int | float, ...]
# 28 numbers: (*U, *Sigma, *Vh, matrix_ptr, error_ptr, left_ptr, right_ptr) for U (batch, m, k),
# Sigma (batch, k, k), Vh (batch, k, n), U and Vh not float64; matrix (batch, p, q) float32, p =
# min(m, k), q = min(k, n); error (batch) float64, -1 where another method must find the core; left
# (batch, p, m) and right (batch, q, n) float32, 0 for none
_CoreJob = tuple[int, ...]
# (src_ptr, type, stride_row, stride_column, dst_ptr, type, stride_row, stride_column, rows,
# columns, code_ptr): numbers of type 2 float32, 3 float64, 4 int64 or 5 bool become float32 or
# float64, unless the float64 at code_ptr is negative; 0 for always
_CopyJob = tuple[int, int, int, int, int, int, int, int, int, int, int]
# (src_ptr, dtype, starts_ptr, parts, count, out_ptr): out (count) is the mean of the stretches of
# src that begin at starts (parts) int64, float32 or float64 summed in float64
_MeanJob = tuple[int, int, int, int, int, int]
# (a_ptr, b_ptr, dtype, count, out_ptr): float32 or float64
_ProductJob = tuple[int, int, int, int, int]
# (*matrix, dst_ptr, stats_ptr)
_SnapshotJob = tuple[int, int, int, int, int, int, int, int, int, int]

def svdvals(jobs: Sequence[_ValuesJob], threads: int) -> None: ...
def svd(jobs: Sequence[_VectorsJob], threads: int) -> None: ...
def rsvd(jobs: Sequence[_RandomizedJob], threads: int) -> None: ...

# out (columns, n) float32: the random block of entry ``entry`` of matrix ``matrix``, transposed
def normals(seed: int, matrix: int, entry: int, n: int, columns: int, out: int) -> None: ...
def summarize(jobs: Sequence[_SummaryJob], threads: int) -> None: ...
def summarize_with_bounds(jobs: Sequence[_BoundedSummaryJob], threads: int) -> None: ...
def clusters(jobs: Sequence[_ClusterJob], threads: int = 1) -> None: ...
def alignment_diagonals(jobs: Sequence[_AlignmentJob], threads: int) -> None: ...
def snapshot(jobs: Sequence[_SnapshotJob], threads: int) -> None: ...
def track(jobs: Sequence[_TrackJob], threads: int) -> None: ...
def leading(jobs: Sequence[_LeadingJob], threads: int) -> None: ...
def cores(jobs: Sequence[_CoreJob], threads: int) -> None: ...
def copy(jobs: Sequence[_CopyJob], threads: int = 1) -> None: ...
def mean(jobs: Sequence[_MeanJob], threads: int = 1) -> None: ...
def product(jobs: Sequence[_ProductJob], threads: int = 1) -> None: ...

NUMBERS: dict[str, float]
"""Numbers that Python has as well, by name."""

class Program:
    """Jobs of the functions above that are read once and run one function after the other."""

    def add(self, operation: str, jobs: list[tuple[int | float, ...]]) -> None:
        """Have these jobs run after those before."""

    def run(self, threads: int) -> None:
        """Run all, without the GIL."""

def svdvals_supported(dtype: int, m: int, n: int) -> bool: ...
def svd_supported(dtype: int, m: int, n: int) -> bool: ...
def track_supported(dtype: int, m: int, n: int) -> bool: ...
def isa() -> str: ...
def isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
