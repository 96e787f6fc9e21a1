"""Alignment of many pairs of matrices of vectors in one launch.

    d_i = |sum_a U[a, i] V[i, a]|                               (the diagonal of |U^T V'|)
    c_i = ||U_C^T V_C||_F / sqrt(|C|)  for the cluster C of i   (the root of ``subspace_overlap``)

A pair is a job: U (m, k), V (k, m), any strides. A program owns ROWS vectors of it and reads
2 m ROWS entries, 4 or 8 bytes each, for as many multiplications and additions; sums are float64.
Only where its vectors share clusters with others it multiplies tiles of U^T V, by float64 products
(``dot`` of float64, no TF32). Its sums of squares go to memory, and the program of a pair that
comes last, which an integer counter tells, adds those of each cluster, in order. A place beyond
the last vector has no cluster.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectral_kernels.runtime.triton.device import load_float64, store_float64

# Columns of a job: byte offsets of U and V; dtype code of both and of the results; strides of U
# along a vector and between vectors, of V likewise; m; k; byte offset of the diagonal, of the
# cosines, of the clusters; where its sums of squares begin; how many programs it has.
FIELDS = tl.constexpr(14)


@triton.jit
def alignments(
    base_ptr, jobs_ptr, tiles_ptr, sums_ptr, arrived_ptr,
    CLUSTERS: tl.constexpr, ROWS: tl.constexpr, LENGTH: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """tiles (programs, 2): pair and number within it."""
    program = tl.program_id(0).to(tl.int64)
    pair, tile = tl.load(tiles_ptr + 2 * program), tl.load(tiles_ptr + 2 * program + 1)
    job = jobs_ptr + pair * FIELDS
    code, k = tl.load(job + 2), tl.load(job + 8)
    i = tile * ROWS + tl.arange(0, ROWS)
    inside = i < k
    diagonal = tl.abs(_diagonal(base_ptr, job, i, inside, LENGTH))
    store_float64(base_ptr, tl.load(job + 9), i, diagonal, inside, code)
    if CLUSTERS:
        cluster = _clusters(base_ptr, job, i, inside)
        own = diagonal * diagonal
        # Clusters are chains of indices: none that these vectors share begins before theirs.
        begin = tl.min(tl.where(inside, cluster, k), 0) // ROWS * ROWS
        for start in range(begin, k, ROWS):
            j = start + tl.arange(0, ROWS)
            together = cluster[:, None] == _clusters(base_ptr, job, j, j < k)[None, :]
            together = together & inside[:, None] & (j < k)[None, :] & (i[:, None] != j[None, :])
            if tl.sum(tl.sum(together.to(tl.int32), 1), 0) > 0:
                product = _product(base_ptr, job, i, inside, j, j < k, ROWS, DEPTH)
                # Not a product with the mask: a NaN of another cluster would come through.
                own += tl.sum(tl.where(together, product * product, 0.0), 1)
        first = tl.load(job + 12)
        tl.store(sums_ptr + first + i, own, mask=inside)
        # The sums are written before the count is seen to rise, by whichever program sees it.
        tl.debug_barrier()
        arrived = tl.atomic_add(arrived_ptr + pair, 1, sem="acq_rel")
        if arrived == tl.load(job + 13) - 1:
            tl.debug_barrier()
            _cosines(base_ptr, job, sums_ptr + first, code, k, ROWS, BLOCK)
            tl.store(arrived_ptr + pair, 0)


@triton.jit
def _clusters(base_ptr, job, i, inside):
    """Return the first index of the cluster of each vector, -1 where there is none."""
    ptr = (base_ptr + tl.load(job + 11)).to(tl.pointer_type(tl.int64))
    return tl.load(ptr + i, mask=inside, other=-1)


@triton.jit
def _diagonal(base_ptr, job, i, inside, LENGTH: tl.constexpr):
    """Return sum_a U[a, i] V[i, a]."""
    u, v, code = tl.load(job), tl.load(job + 1), tl.load(job + 2)
    u_along, u_across, v_along, v_across = (
        tl.load(job + 3), tl.load(job + 4), tl.load(job + 5), tl.load(job + 6)
    )  # fmt: skip
    m = tl.load(job + 7)
    total = tl.zeros((i.shape[0], LENGTH), tl.float64)
    for start in range(0, m, LENGTH):
        a = (start + tl.arange(0, LENGTH))[None, :]
        mask = inside[:, None] & (a < m)
        left = load_float64(base_ptr, u, i[:, None] * u_across + a * u_along, mask, code)
        right = load_float64(base_ptr, v, i[:, None] * v_across + a * v_along, mask, code)
        total += left * right
    return tl.sum(total, 1)


@triton.jit
def _product(base_ptr, job, i, i_inside, j, j_inside, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    """Return the tile (i, j) of U^T V^T in float64."""
    u, v, code = tl.load(job), tl.load(job + 1), tl.load(job + 2)
    u_along, u_across, v_along, v_across = (
        tl.load(job + 3), tl.load(job + 4), tl.load(job + 5), tl.load(job + 6)
    )  # fmt: skip
    m = tl.load(job + 7)
    total = tl.zeros((ROWS, ROWS), tl.float64)
    for start in range(0, m, DEPTH):
        a = start + tl.arange(0, DEPTH)
        left = load_float64(
            base_ptr, u, i[:, None] * u_across + a[None, :] * u_along,
            i_inside[:, None] & (a < m)[None, :], code,
        )  # fmt: skip
        right = load_float64(
            base_ptr, v, j[None, :] * v_across + a[:, None] * v_along,
            j_inside[None, :] & (a < m)[:, None], code,
        )  # fmt: skip
        total = tl.dot(left, right, total, input_precision="ieee", out_dtype=tl.float64)
    return total


@triton.jit
def _cosines(base_ptr, job, sums_ptr, code, k, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Write the cosines of all vectors of a pair, from the sums of squares of each."""
    target = tl.load(job + 10)
    for place in range(0, k, ROWS):
        i = place + tl.arange(0, ROWS)
        cluster = _clusters(base_ptr, job, i, i < k)
        total = tl.zeros((ROWS, BLOCK), tl.float64)
        members = tl.zeros((ROWS, BLOCK), tl.float64)
        begin = tl.min(tl.where(i < k, cluster, k), 0) // BLOCK * BLOCK
        for start in range(begin, k, BLOCK):
            j = start + tl.arange(0, BLOCK)
            together = cluster[:, None] == _clusters(base_ptr, job, j, j < k)[None, :]
            together = together & (i < k)[:, None] & (j < k)[None, :]
            # From L2, where other programs' stores are.
            part = tl.load(sums_ptr + j, mask=j < k, other=0.0, cache_modifier=".cg")
            total += tl.where(together, part[None, :], 0.0)
            members += tl.where(together, 1.0, 0.0)
        cosine = tl.sqrt(tl.sum(total, 1) / tl.maximum(tl.sum(members, 1), 1.0))
        store_float64(base_ptr, target, i, cosine, i < k, code)
