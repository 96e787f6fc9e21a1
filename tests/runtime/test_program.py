"""Programs: the same entries run by Python and, where all have calls, as one native call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectral_kernels.runtime.program import torch_backend
from spectral_kernels.runtime.program.op import Follow, Program, follow, join, mean_of, product_of
from spectral_kernels.tracking.op import SpectrumTracker

TYPES = (torch.float32, torch.float64, torch.int64, torch.bool)


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3.0 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("dtype", TYPES[:2], ids=str)
def test_parts_are_joined_in_the_dtype_of_the_block(dtype: torch.dtype, backend: str) -> None:
    for kind in TYPES:
        table = numbers(4, 3, dtype=kind)
        parts = [table.mT, table[0, 0], numbers(5, dtype=kind), table[:, 1], table[:0]]
        want = torch.cat([x.reshape(-1) for x in parts]).to(dtype)
        out = torch.zeros(len(want), dtype=dtype)
        Program([join(parts, out)], "cpu").run()
        assert torch.equal(out, want)


def test_parts_of_several_dtypes(backend: str) -> None:
    parts = [numbers(3, dtype=dtype) for dtype in TYPES]
    out = torch.full((12,), torch.nan, dtype=torch.float64)
    join(parts, out).run()
    assert torch.equal(out, torch.cat([x.double() for x in parts]))


def test_means_are_those_of_float64(backend: str) -> None:
    block = numbers(60, dtype=torch.float32)
    mean = mean_of(block, [[0], [3, 20, 41], [7, 8]], [4, 6, 2])
    Program([mean], "cpu").run()
    wide = block.double()
    want = [wide[:4], (wide[3:9] + wide[20:26] + wide[41:47]) / 3, (wide[7:9] + wide[8:10]) / 2]
    assert torch.equal(mean.out, torch.cat(want).float())


def test_memory_follows_where_the_code_allows_it(backend: str) -> None:
    codes = torch.tensor([[0.0, 1.0], [-1.0, 2.0], [3.0, 9.0]], dtype=torch.float64)
    now = [numbers(3, 4, dtype=torch.float32, seed=i).mT for i in range(3)]
    kept = [torch.full((4, 3), torch.nan) for _ in range(3)]
    Program([follow([Follow(*x, codes[i, 0]) for i, x in enumerate(zip(now, kept, strict=True))])],
            "cpu").run()  # fmt: skip
    assert torch.equal(kept[0], now[0])
    assert torch.equal(kept[2], now[2])
    assert kept[1].isnan().all()


def test_entries_with_calls_are_one_native_call() -> None:
    pytest.importorskip("spectral_kernels._C")
    a, b = numbers(6, dtype=torch.float32), numbers(6, dtype=torch.float32, seed=1)
    product, out = torch.zeros(6), torch.zeros(12, dtype=torch.float64)
    entries = [product_of(a, b, product), join([product, a], out)]
    program = Program(entries, "cpu")
    assert program.stages == 1
    for _ in range(2):
        program.run()
        assert torch.equal(out, torch.cat([(a * b).double(), a.double()]))
        a.add_(1.0)
    # What Python has to do stands between native calls.
    between = torch_backend.Product(a, b, product)
    assert Program([entries[1], between, entries[0], entries[1]], "cpu").stages == 3


def test_an_update_is_an_entry() -> None:
    pytest.importorskip("spectral_kernels._C")
    A = [numbers(9, 5, dtype=torch.float32), numbers(4, 7, dtype=torch.float32)]
    tracker, other = (SpectrumTracker(reuse_buffers=True) for _ in range(2))
    svds = tracker.update(A)
    entry = tracker.prepared()
    assert entry is not None
    other.update(A)
    program = Program([entry], "cpu")
    for step in range(4):
        for x in A:
            x += 0.01 * numbers(*x.shape, dtype=x.dtype, seed=step)
        if step == 2:
            A[0].copy_(numbers(9, 5, dtype=torch.float32, seed=9))
        program.run()
        assert not entry.settle()
        for mine, theirs in zip(svds, other.update(A), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))
        assert [int(code) for code in entry.codes] == other.codes
    assert tracker.resolves == other.resolves == 1


def test_jobs_are_checked_when_they_are_read() -> None:
    program = pytest.importorskip("spectral_kernels._C").Program()
    with pytest.raises(ValueError, match="no operation is called 'add'"):
        program.add("add", [])
    with pytest.raises(ValueError, match="tuple of 5 numbers"):
        program.add("product", [(0, 0)])
    with pytest.raises(ValueError, match="must be 2 or 3, got 1"):
        program.add("product", [(0, 0, 1, 0, 0)])
    with pytest.raises(ValueError, match="must be 2 to 5, got 7"):
        program.add("copy", [(0, 7, 0, 1, 0, 2, 0, 1, 0, 0, 0)])
