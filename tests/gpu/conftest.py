"""Tests that need a GPU; without one they skip.

SPECTRAL_KERNELS_TEST_DEVICE=cpu runs those that any device can run on the CPU, so that what is
wrong with a test shows before a GPU is there.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from spectral_kernels.runtime import dispatch

DEVICE = os.environ.get("SPECTRAL_KERNELS_TEST_DEVICE", "cuda")
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> str:
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return DEVICE


@pytest.fixture
def cuda(device: str) -> str:
    """For what only a GPU has: streams, graphs, synchronisation."""
    if device != "cuda":
        pytest.skip("needs streams and graphs")
    return device


@pytest.fixture(params=["cuda", "triton", "torch"])
def backend(request: pytest.FixtureRequest, device: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test on every backend of this machine that runs on the device."""
    row = next(row for row in dispatch.BACKENDS if row.name == request.param)
    reason = dispatch.refusal(row, device)
    if reason is not None:
        pytest.skip(f"{row.name}: {reason}")
    monkeypatch.setenv(dispatch.ENVIRONMENT, request.param)
    return request.param
