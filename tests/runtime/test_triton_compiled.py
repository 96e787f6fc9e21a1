"""Triton kernels compiled ahead of time for sm_80 and sm_90, which needs no GPU."""

from __future__ import annotations

import pytest

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from tests.support import triton_resources  # noqa: E402
from tests.support.triton_variants import Variant  # noqa: E402


@pytest.mark.parametrize("operation", triton_resources.operations())
def test_registers_memory_and_spills(operation: str) -> None:
    measured = triton_resources.measured(operation)
    for name, per_architecture in measured.items():
        for architecture, resources in per_architecture.items():
            assert resources["stack_bytes"] == 0, f"{name} on {architecture} spills: {resources}"
    committed = triton_resources.table(operation)
    renew = f"python -m tests.support.triton_resources --write {operation}"
    assert list(measured) == list(committed["kernels"]), renew
    if committed["triton"] == triton.__version__:
        assert measured == committed["kernels"], renew


@triton.jit
def _greedy(x_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i[:, None] * N + i[None, :])
    y = tl.load(x_ptr + i[None, :] * N + i[:, None])
    tl.store(x_ptr + i[:, None] * N + i[None, :], tl.exp(x) + y + tl.sum(x * y))


def test_a_spill_is_seen() -> None:
    greedy = Variant("greedy", _greedy, {"x_ptr": "*fp64"}, {"N": 128}, {"num_warps": 1})
    compiled = triton_resources.compile_for(greedy, 90)
    assert triton_resources.resources(compiled)["stack_bytes"] > 0
