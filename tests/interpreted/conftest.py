"""Tests that need Triton's interpreter: ``tests/runtime/test_interpreted.py`` runs them."""

from __future__ import annotations

import pytest

from spectral_kernels.runtime import dispatch
from spectral_kernels.runtime.triton import host

# Whether kernels are interpreted is settled when they are defined, for a whole process.
if not host.interpreting():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every operation on its Triton kernels, where it has some."""
    monkeypatch.setenv(dispatch.ENVIRONMENT, "triton")
