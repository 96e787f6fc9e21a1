"""Which backends tests run on: the compiled kernels, once per instruction set, and the others."""

from __future__ import annotations

import os

import pytest

from spectral_kernels.runtime import dispatch

try:
    from spectral_kernels import _C

    _ISAS = list(_C.isas())
    _MISSING = ""
except ImportError as error:
    _ISAS = []
    _MISSING = str(error)

# Every instruction set of this machine is a backend of its own: the fastest is not the only one
# that users run. Without the compiled module one entry stands for all of them.
COMPILED = [f"cpu-{isa}" for isa in _ISAS] or ["cpu"]


def need_compiled() -> None:
    """Skip where a developer has not compiled; fail where the Makefile says that one must."""
    if not _MISSING:
        return
    reason = f"no compiled module ({_MISSING}); {dispatch.COMPILE_REMEDY}"
    if os.environ.get("SPECTRAL_KERNELS_REQUIRE_COMPILED") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
