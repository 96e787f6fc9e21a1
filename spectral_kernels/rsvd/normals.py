"""The random columns of a start block in plain torch: the bits of ``csrc/include/philox.h``.

Entry (row, column) is a function of the seed and of its place, so a kernel that makes it where it
is needed, and one that fills memory, use the same numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Of every call without a generator.
DEFAULT_SEED = 0

_WORD = 0xFFFFFFFF
_LOG = (
    -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
    2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip


def seed_from(generator: torch.Generator | None) -> Tensor:
    """Draw a seed, int64 () on the generator's device; ``DEFAULT_SEED`` if None.

    A tensor, so that nothing is read from a device here, and that tracing sees where it is from.
    """
    if generator is None:
        # A measurement that drew from torch's own generator would change the run it measures.
        return torch.tensor(DEFAULT_SEED, dtype=torch.int64)
    return torch.randint(2**63 - 1, (), generator=generator, device=generator.device)


def normals(
    seed: int, matrix: int, batch: int, n: int, first: int, last: int, device: torch.device
) -> Tensor:
    """Return (batch, n, last - first) float32: columns first to last of the random blocks.

    ``matrix`` is the index in a list of matrices; entries of a batch differ too.
    """
    group = torch.arange(first // 4, -(-last // 4), device=device)
    row = torch.arange(n, device=device)[:, None]
    entry = torch.arange(batch, device=device)[:, None, None]
    x, y, z, w = _philox((row, group, entry, torch.full_like(row, matrix)), seed)
    block = torch.stack((*_normal_pair(x, y), *_normal_pair(z, w)), dim=-1)
    start = first % 4
    return block.flatten(-2)[..., start : start + last - first]


def _philox(counter: tuple[Tensor, ...], seed: int) -> tuple[Tensor, ...]:
    """Philox4x32-10 on words in int64: a product's upper half is right although it wraps."""
    c0, c1, c2, c3 = counter
    low, high = seed & _WORD, seed >> 32 & _WORD
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c2 = (b >> 32 & _WORD) ^ c1 ^ low, (a >> 32 & _WORD) ^ c3 ^ high
        c1, c3 = b & _WORD, a & _WORD
        low, high = low + 0x9E3779B9 & _WORD, high + 0xBB67AE85 & _WORD
    return c0, c1, c2, c3


def _normal_pair(radius: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    u = ((radius >> 9) * 2 + 1).float() * 2.0**-24
    bits = u.view(torch.int32)
    e = (bits - 0x3F3504F3) >> 23
    t = (bits - (e << 23)).view(torch.float32) - 1.0
    z = t * t
    p = torch.full_like(t, 7.0376836292e-2)
    for coefficient in _LOG:
        p = p * t + coefficient
    exponent = e.float()
    log = t * z * p + exponent * -2.12194440e-4
    log = log - 0.5 * z
    # A vector library's float32 roots are not always the nearest ones (a fifth is not, measured);
    # rounded from float64 they are: 53 >= 2 * 24 + 2 bits (Figueroa, SIGNUM Newsletter 30, 1995).
    r = (-2.0 * (t + log + exponent * 0.693359375)).double().sqrt().float()
    fraction = (angle >> 7 & 0x7FFFFF) * 2 + 1 - (1 << 23)
    a = fraction.float() * 2.0**-24 * (math.pi / 2)
    z = a * a
    s = z * -1.9515295891e-4 + 8.3321608736e-3
    s = s * z - 1.6666654611e-1
    s = s * z * a + a
    c = z * 2.443315711809948e-5 - 1.388731625493765e-3
    c = c * z + 4.166664568298827e-2
    c = c * z * z - 0.5 * z + 1.0
    r = torch.where((angle >> 30 & 1) == 1, -r, r)
    swapped = angle >> 31 == 1
    return r * torch.where(swapped, s, c), r * torch.where(swapped, c, s)


class Sketch(NamedTuple):
    """What is asked of one matrix ``A`` (..., m, n) of a list: ``k`` leading triplets.

    The start block (..., n, width) has the columns ``start`` (..., n, given), then random ones;
    ``number`` is the place of the matrix in its list, which they depend on.
    """

    A: Tensor
    start: Tensor
    k: int
    width: int
    number: int

    def block(self, seed: int) -> Tensor:
        """Return the start block of this seed."""
        return start_block(self.A, self.start, self.width, seed, self.number)


def start_block(A: Tensor, start: Tensor, width: int, seed: int, matrix: int) -> Tensor:
    """Return (..., n, width): the columns of ``start`` (..., n, given), then random ones.

    In the dtype of ``start``; ``A`` (..., m, n) gives the shape.
    """
    *batch, n, given = start.shape
    if given >= width:
        return start
    fill = normals(seed, matrix, math.prod(batch), n, given, width, A.device)
    return torch.cat((start, fill.reshape(*batch, n, width - given).to(start.dtype)), dim=-1)
