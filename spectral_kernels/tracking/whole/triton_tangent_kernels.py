"""The rotation of all columns of W at once: t_ij of all pairs, R = I + E + E^2 / 2, and after it.

    t_ij = sign(tau) / (|tau| + sqrt(1 + tau^2)), tau = (s_j^2 - s_i^2) / (2 S_ij)

are Jacobi's tangents (Rutishauser 1966), E their skew matrix, scaled down where those of a column
add up to too much.

``rotation``        a program a tile of E above the diagonal and its mirror: reads 4 r^2 bytes of S,
                    writes E and I + E, 16 r^2 bytes; E^2 / 2 is added by a product.
``orthonormalizer`` a program ROWS rows of G = N^T N: Z = 3/2 I - 1/2 G in place, and the row sums
                    of |G - I| and of its squares. N Z is a Newton-Schulz step.

Everything is float64. Matrices that do not ask get E = 0 and Z = I where the products run for all
of them (SKIP = False), and nothing where they run for those that ask.
"""

# Device code is no Python: Triton's compiler reads it.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

EPS = tl.constexpr(2.0**-52)


@triton.jit
def real(n):
    """Return an integer as float64, a compile-time constant (what Triton makes of 1) too."""
    return tl.full((), 0.0, tl.float64) + n


@triton.jit
def tangents(g, s_i, s_j, long):
    """Return t for a tile g of S above the diagonal; below it the sign is wrong for equal values.

    A cosine that the rounding of M = ``long`` products explains does not turn: equal values would
    turn by 45 degrees for nothing.
    """
    half = 0.5 * ((s_j * s_j)[None, :] - (s_i * s_i)[:, None])
    size = tl.abs(half) + tl.sqrt(half * half + g * g)
    t = tl.where(half < 0, -g, g) / tl.where(size > 0, size, 1.0)
    noise = real(long) * EPS * s_i[:, None] * s_j[None, :]
    return tl.where((tl.abs(g) > noise) & (size > 0), t, 0.0)


@triton.jit
def rotation(
    asked_ptr,
    gram_ptr,
    values_ptr,
    shrink_ptr,
    skew_ptr,
    first_order_ptr,
    r,
    long,
    SKIP: tl.constexpr,
    SIDE: tl.constexpr,
):
    """skew (B, r, r) is E and first_order (B, r, r) is I + E."""
    across = (r + SIDE - 1) // SIDE
    batch = (tl.program_id(0) // (across * across)).to(tl.int64)
    tile = tl.program_id(0) % (across * across)
    row, column = tile // across, tile % across
    asked = tl.load(asked_ptr + batch)
    if SKIP:  # noqa: SIM102  (Triton evaluates both sides of "and")
        if asked == 0:
            return
    if row > column:
        return
    i = (row * SIDE + tl.arange(0, SIDE)).to(tl.int64)
    j = (column * SIDE + tl.arange(0, SIDE)).to(tl.int64)
    inside = (i < r)[:, None] & (j < r)[None, :]
    matrix = batch * r * r
    here = matrix + i[:, None] * r + j[None, :]
    mirror = matrix + j[:, None] * r + i[None, :]
    g = tl.load(gram_ptr + here, mask=inside, other=0.0)
    s_i = tl.load(values_ptr + batch * r + i, mask=i < r, other=0.0)
    s_j = tl.load(values_ptr + batch * r + j, mask=j < r, other=0.0)
    shrink_i = tl.load(shrink_ptr + batch * r + i, mask=i < r, other=1.0)
    shrink_j = tl.load(shrink_ptr + batch * r + j, mask=j < r, other=1.0)
    t = tangents(g, s_i, s_j, long)
    t = t * tl.minimum(shrink_i[:, None], shrink_j[None, :])
    # Selected, not multiplied: the tangents of a matrix that is not finite are NaN.
    t = tl.where((i[:, None] < j[None, :]) & (asked != 0), t, 0.0)
    if row == column:
        skew = t - tl.trans(t)
        one = tl.where(i[:, None] == j[None, :], 1.0, 0.0)
        tl.store(skew_ptr + here, skew, mask=inside)
        tl.store(first_order_ptr + here, skew + one, mask=inside)
    else:
        outside = (j < r)[:, None] & (i < r)[None, :]
        turned = -tl.trans(t)
        tl.store(skew_ptr + here, t, mask=inside)
        tl.store(first_order_ptr + here, t, mask=inside)
        tl.store(skew_ptr + mirror, turned, mask=outside)
        tl.store(first_order_ptr + mirror, turned, mask=outside)


@triton.jit
def orthonormalizer(
    asked_ptr,
    gram_ptr,
    departures_ptr,
    departure_squares_ptr,
    r,
    stride_sums,
    SKIP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """gram (B, r, r): N^T N on entry, Z on exit; sums (B, r) at ``stride_sums``."""
    blocks = (r + ROWS - 1) // ROWS
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    asked = tl.load(asked_ptr + batch)
    if SKIP:  # noqa: SIM102  (Triton evaluates both sides of "and")
        if asked == 0:
            return
    i = (tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    sums = tl.full((ROWS,), 0.0, tl.float64)
    squares = tl.full((ROWS,), 0.0, tl.float64)
    for start in range(0, r, COLUMNS):
        j = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        inside = (i < r)[:, None] & (j < r)[None, :]
        place = gram_ptr + (batch * r + i[:, None]) * r + j[None, :]
        one = tl.where(i[:, None] == j[None, :], 1.0, 0.0)
        departure = tl.where(inside, tl.load(place, mask=inside, other=0.0) - one, 0.0)
        sums += tl.sum(tl.abs(departure), 1)
        squares += tl.sum(departure * departure, 1)
        tl.store(place, tl.where(asked != 0, one - 0.5 * departure, one), mask=inside)
    tl.store(departures_ptr + batch * stride_sums + i, sums, mask=i < r)
    tl.store(departure_squares_ptr + batch * stride_sums + i, squares, mask=i < r)
