"""Every Triton kernel in Triton's interpreter, each file in a process of its own.

Whether kernels are compiled or interpreted is settled when they are defined, so it cannot change
within this process. In such a process the fixtures ``backend`` and ``every_isa`` mean Triton, and
tests that use neither are left out; so the tests of the operations run here as they are.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

# Tests of operations beside tests/interpreted whose fixtures reach Triton's kernels.
SHARED = [
    "alignment/test_alignment.py",
    "runtime/test_capabilities.py",
    "alignment/test_clusters.py",
    "runtime/test_opcheck.py",
    "rank/test_rank.py",
    "rsvd/test_rsvd.py",
    "snapshot/test_snapshot.py",
    "rank/test_summary_bounds.py",
]


def files() -> list[str]:
    own = sorted(path.name for path in (TESTS / "interpreted").glob("test_*.py"))
    return [*(f"interpreted/{name}" for name in own), *SHARED]


def run(file: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, f"tests/{file}"],
        cwd=TESTS.parent,
        env={**os.environ, "TRITON_INTERPRET": "1", **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("file", files())
def test_in_the_interpreter(file: str) -> None:
    pytest.importorskip("triton")
    done = run(file)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
