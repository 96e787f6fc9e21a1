"""Every Triton kernel in Triton's interpreter, in a few processes of their own.

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

# A process for each group, of about as many seconds each: tests.interpreted, and tests of
# operations whose fixtures reach Triton's kernels.
GROUPS = {
    "leading": ["interpreted/test_leading.py"],
    "tracking": ["interpreted/test_tracking.py"],
    "kernels of tracking": ["interpreted/test_collapse.py", "interpreted/test_tracking_kernels.py"],
    "factors and steps": ["interpreted/test_usv_matmul.py", "interpreted/test_monitor_step.py"],
    "random projections": [
        "interpreted/test_normals.py", "interpreted/test_rsvd.py", "rsvd/test_rsvd.py",
        "interpreted/test_products.py",
    ],
    "measures": [
        "interpreted/test_alignment.py", "alignment/test_alignment.py",
        "alignment/test_clusters.py", "interpreted/test_rank.py", "rank/test_rank.py",
        "rank/test_summary_bounds.py", "interpreted/test_snapshot.py", "snapshot/test_snapshot.py",
        "runtime/test_capabilities.py", "runtime/test_opcheck.py",
    ],
}  # fmt: skip


def run(*files: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, *(f"tests/{file}" for file in files)],
        cwd=TESTS.parent,
        env={**os.environ, "TRITON_INTERPRET": "1", **environment},
        capture_output=True,
        text=True,
    )


def test_every_file_is_in_a_group() -> None:
    own = {f"interpreted/{path.name}" for path in (TESTS / "interpreted").glob("test_*.py")}
    listed = [file for files in GROUPS.values() for file in files]
    assert len(listed) == len(set(listed))
    assert own <= set(listed)


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_in_the_interpreter(group: str) -> None:
    pytest.importorskip("triton")
    done = run(*GROUPS[group])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
