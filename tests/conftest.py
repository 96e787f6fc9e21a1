"""Fixtures of all tests: poisoned memory, backends, instruction sets."""

from __future__ import annotations

import os

# Before torch and NumPy load their thread pools: threads that spin while they wait for work take
# the core from the other pool, which makes small products a hundred times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch.utils import deterministic

from spectral_kernels.runtime import dispatch
from spectral_kernels.runtime.triton import host
from tests.support.compiled import COMPILED, need_compiled

settings.register_profile("suite", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("suite")

# A process that interprets Triton kernels runs nothing else: tests/runtime/test_interpreted.py.
INTERPRETING = host.interpreting()
if INTERPRETING:
    from tests.support import fast_interpreter

    fast_interpreter.install()
_EVERY_ISA = ["triton"] if INTERPRETING else [*COMPILED, "torch"]
_BACKENDS = ["triton"] if INTERPRETING else ["cpu", "torch"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where kernels are interpreted, leave out what would run none."""
    if INTERPRETING:
        items[:] = [item for item in items if _runs_triton(item)]
    # The longest first: one that starts last keeps the other processes waiting.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def _runs_triton(item: pytest.Item) -> bool:
    return {"backend", "every_isa", "interpreted"} & set(getattr(item, "fixturenames", ())) != set()


def _use(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    kind, _, isa = name.partition("-")
    if kind == "cpu":
        need_compiled()
    monkeypatch.setenv(dispatch.ENVIRONMENT, kind)
    if not isa:
        yield name
        return
    from spectral_kernels import _C

    before = _C.isa()
    _C.set_isa(isa)
    yield name
    _C.set_isa(before)


@pytest.fixture(params=_EVERY_ISA)
def every_isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the test on plain torch and on the compiled kernels, once per instruction set."""
    yield from _use(request.param, monkeypatch)


@pytest.fixture(params=_BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the test on the compiled kernels (the instruction set users get) and on plain torch."""
    yield from _use(request.param, monkeypatch)


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fill ``torch.empty`` with NaN, so that an output nobody wrote shows."""
    filled = deterministic.fill_uninitialized_memory
    mode = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    yield
    deterministic.fill_uninitialized_memory = filled
    torch.set_deterministic_debug_mode(mode)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
