"""Random numbers by their place, for kernels that make them where they are needed.

The bits of ``csrc/include/philox.h``, which gives the formulas: Philox4x32-10 and Box-Muller with
polynomials of float32. A kernel that calls this is compiled without fused multiply-adds, which
round once where other machines round twice. About 50 operations a number.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def normals(seed, matrix, entry, row, group):
    """Return float32 normals (ROWS, 4 GROUPS): rows ``row``, columns 4 group to 4 group + 3.

    ``row`` (ROWS,), ``group`` (GROUPS,), ``matrix`` and ``entry`` () are int32.
    """
    shape: tl.constexpr = (row.shape[0], group.shape[0])
    x, y, z, w = tl.philox(
        seed,
        tl.broadcast_to(row[:, None], shape),
        tl.broadcast_to(group[None, :], shape),
        tl.full(shape, 0, tl.int32) + entry,
        tl.full(shape, 0, tl.int32) + matrix,
    )
    a, b = _normal_pair(x, y)
    c, d = _normal_pair(z, w)
    # The last of the joined sides is the fastest: a, b, c, d.
    return tl.join(tl.join(a, c), tl.join(b, d)).reshape(shape[0], 4 * shape[1])


@triton.jit
def _normal_pair(radius, angle):
    r = _radius(radius)
    a, b = _unit_vector(angle)
    return r * a, r * b


@triton.jit
def _radius(word):
    """sqrt(-2 ln u), u = (2 (word >> 9) + 1) / 2^24."""
    u = ((word >> 9) * 2 + 1).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08
    bits = u.to(tl.int32, bitcast=True)
    e = (bits - 0x3F3504F3) >> 23
    t = (bits - (e << 23)).to(tl.float32, bitcast=True) - 1.0
    z = t * t
    p = t * 7.0376836292e-2 - 1.1514610310e-1
    p = p * t + 1.1676998740e-1
    p = p * t - 1.2420140846e-1
    p = p * t + 1.4249322787e-1
    p = p * t - 1.6668057665e-1
    p = p * t + 2.0000714765e-1
    p = p * t - 2.4999993993e-1
    p = p * t + 3.3333331174e-1
    exponent = e.to(tl.float32)
    log = t * z * p + exponent * -2.12194440e-4
    log = log - 0.5 * z
    log = t + log + exponent * 0.693359375
    return tl.sqrt_rn(-2.0 * log)


@triton.jit
def _unit_vector(word):
    fraction = ((word >> 7) & 0x7FFFFF).to(tl.int32) * 2 + 1 - (1 << 23)
    angle = fraction.to(tl.float32) * 5.9604644775390625e-08 * 1.57079632679
    z = angle * angle
    s = z * -1.9515295891e-4 + 8.3321608736e-3
    s = s * z - 1.6666654611e-1
    s = s * z * angle + angle
    c = z * 2.443315711809948e-5 - 1.388731625493765e-3
    c = c * z + 4.166664568298827e-2
    c = c * z * z - 0.5 * z + 1.0
    swapped = (word >> 31) == 1
    sign = tl.where(((word >> 30) & 1) == 1, -1.0, 1.0)
    return sign * tl.where(swapped, s, c), sign * tl.where(swapped, c, s)
