"""Device functions that the Triton kernels of several operations share.

``base_ptr`` is a pointer to bytes and ``offset`` an int64 distance in bytes from it, so that one
kernel reads tensors that lie anywhere and differ in type. Codes of types are those of
``numerics.DTYPE_CODES``.
"""

from __future__ import annotations

import triton
import triton.language as tl

FLOAT16 = tl.constexpr(0)
BFLOAT16 = tl.constexpr(1)
FLOAT32 = tl.constexpr(2)
FLOAT64 = tl.constexpr(3)


@triton.jit
def load_float64(base_ptr, offset, index, mask, code):
    """Return entries of a float32 or float64 array as float64; 0 where masked."""
    place = base_ptr + offset
    if code == FLOAT64:
        x = tl.load(place.to(tl.pointer_type(tl.float64)) + index, mask=mask, other=0.0)
    else:
        x = tl.load(place.to(tl.pointer_type(tl.float32)) + index, mask=mask, other=0.0).to(
            tl.float64
        )
    return x


@triton.jit
def store_float64(base_ptr, offset, index, x, mask, code):
    """Write float64 values to a float32 or float64 array."""
    place = base_ptr + offset
    if code == FLOAT64:
        tl.store(place.to(tl.pointer_type(tl.float64)) + index, x, mask=mask)
    else:
        tl.store(place.to(tl.pointer_type(tl.float32)) + index, x.to(tl.float32), mask=mask)


@triton.jit
def load_float32(ptr, index, code, mask):
    """Return entries of a 16- or 32-bit type as float32; anything where masked, None: nowhere."""
    if code == FLOAT16:
        x = tl.load(ptr.to(tl.pointer_type(tl.float16)) + index, mask=mask).to(tl.float32)
    elif code == BFLOAT16:
        # The upper half of a float32: exact, and known to Triton's interpreter.
        half = tl.load(ptr.to(tl.pointer_type(tl.uint16)) + index, mask=mask)
        x = (half.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        x = tl.load(ptr.to(tl.pointer_type(tl.float32)) + index, mask=mask)
    return x


@triton.jit
def load_bits(ptr):
    """Return the float64 whose bits a table of int64 holds."""
    return tl.load(ptr).to(tl.float64, bitcast=True)


@triton.jit
def surprisal(x):
    """Return -x ln x, 0 at 0."""
    some = x > 0
    return tl.where(some, -x * tl.log(tl.where(some, x, 1.0)), 0.0)
