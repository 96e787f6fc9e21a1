"""Ranks and norms of spectra, and the bounds of ``rank.summary_bounds``: one program a spectrum.

    x = sigma / sigma_1, N = sum x:  entropy ln N - (sum x ln x) / N  (Yunis et al. 2024, Eq. 1),
    its exponential, sum x^2, #{x > rtol}, sigma_1, sigma_1 N, sigma_1 sqrt(sum x^2).

The grid is the number of spectra; a job is a row of int64, see the constants below. Two passes
over r values in tiles of BLOCK, three with bounds; all but the first from cache. Everything is
float64, a logarithm for each value (bounds: two more, four where the error exceeds the value), so
the arithmetic is r * (about 60 to 250) operations on 4 r to 16 r bytes. The entropy is not taken
as -sum p ln p, which would need N first and so another pass.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectral_kernels.rank.triton_bound_kernels import bound
from spectral_kernels.runtime.triton.device import load_bits, load_float64, surprisal

# Columns of a job: byte offset of the values; dtype code; r; the bits of rtol; byte offsets of the
# bounds of the values, of that of the 2-norm of all errors, of the summary, of its bounds.
FIELDS = tl.constexpr(8)


@triton.jit
def summaries(base_ptr, jobs_ptr, BOUNDS: tl.constexpr, BLOCK: tl.constexpr):
    """Write 7 float64 for each job, and with BOUNDS 7 bounds."""
    row = tl.program_id(0).to(tl.int64)
    job = jobs_ptr + row * FIELDS
    values, code, r = tl.load(job), tl.load(job + 1), tl.load(job + 2)
    rtol = load_bits(job + 3)
    out_ptr = (base_ptr + tl.load(job + 6)).to(tl.pointer_type(tl.float64))
    top, bad = _largest(base_ptr, values, code, r, BLOCK)
    total, squares, logs, rank = _sums(base_ptr, values, code, r, top, rtol, BLOCK)
    some = top > 0
    n = tl.where(some, total, 1.0)
    entropy = tl.where(some, tl.maximum(tl.log(n) - logs / n, 0.0), 0.0)
    exponential = tl.where(some, tl.exp(entropy), 0.0)
    frobenius = tl.sqrt(squares) * top
    good = bad == 0
    _write(out_ptr, good, entropy, exponential, squares, rank, top, total * top,
           frobenius)  # fmt: skip
    if BOUNDS:
        bounds, norm = tl.load(job + 4), tl.load(job + 5)
        bounds_out_ptr = (base_ptr + tl.load(job + 7)).to(tl.pointer_type(tl.float64))
        bound(base_ptr, values, bounds, norm, bounds_out_ptr, code, r, rtol, top,
              entropy, exponential, squares, total * top, frobenius, good, BLOCK)  # fmt: skip


@triton.jit
def _largest(base_ptr, values, code, r, BLOCK: tl.constexpr):
    """Return the largest value and how many are not finite."""
    most = tl.zeros((BLOCK,), tl.float64)
    bad = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, r, BLOCK):
        i = start + tl.arange(0, BLOCK)
        s = load_float64(base_ptr, values, i, i < r, code)
        finite = tl.abs(s) < float("inf")
        most = tl.maximum(most, tl.where(finite, s, 0.0))
        bad += tl.where(finite, 0, 1)
    return tl.max(most, 0), tl.sum(bad, 0)


@triton.jit
def _sums(base_ptr, values, code, r, top, rtol, BLOCK: tl.constexpr):
    """Return sum x, sum x^2, sum x ln x and #{x > rtol} of x = values / top."""
    total = tl.zeros((BLOCK,), tl.float64)
    squares = tl.zeros((BLOCK,), tl.float64)
    logs = tl.zeros((BLOCK,), tl.float64)
    rank = tl.zeros((BLOCK,), tl.float64)
    scale = tl.where(top > 0, top, 1.0)
    for start in range(0, r, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = load_float64(base_ptr, values, i, i < r, code) / scale
        total += x
        squares += x * x
        logs -= surprisal(x)
        # A place beyond the end holds 0, which is no value, whatever rtol is.
        rank += tl.where((x > rtol) & (i < r), 1.0, 0.0)
    return tl.sum(total, 0), tl.sum(squares, 0), tl.sum(logs, 0), tl.sum(rank, 0)


@triton.jit
def _write(ptr, good, a, b, c, d, e, f, g):
    nan = tl.full((), float("nan"), tl.float64)
    tl.store(ptr, tl.where(good, a, nan))
    tl.store(ptr + 1, tl.where(good, b, nan))
    tl.store(ptr + 2, tl.where(good, c, nan))
    tl.store(ptr + 3, tl.where(good, d, nan))
    tl.store(ptr + 4, tl.where(good, e, nan))
    tl.store(ptr + 5, tl.where(good, f, nan))
    tl.store(ptr + 6, tl.where(good, g, nan))
