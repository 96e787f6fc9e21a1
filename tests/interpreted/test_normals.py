"""The random numbers that kernels make: the bits of every other backend."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from spectral_kernels.rsvd import normals as torch_normals
from spectral_kernels.rsvd.triton_normal_kernels import normals


@triton.jit(do_not_specialize=["seed"])
def _fill(out_ptr, seed, matrix, entry, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    row, group = tl.arange(0, ROWS), tl.arange(0, GROUPS)
    x = normals(seed, matrix, entry, row + 5, group)
    c = tl.arange(0, 4 * GROUPS)
    tl.store(out_ptr + row[:, None] * 4 * GROUPS + c[None, :], x)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 + 7, 2**63 - 2])
def test_the_same_bits(seed: int) -> None:
    out = torch.empty(64, 32)
    _fill[(1,)](out, seed, 3, 2, ROWS=64, GROUPS=8)
    want = torch_normals.normals(seed, 3, 3, 69, 0, 32, torch.device("cpu"))[2, 5:]
    assert torch.equal(out, want)
