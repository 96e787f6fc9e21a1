"""The functions of setup.py, without running its setup()."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def functions() -> dict[str, Any]:
    """Return the names that setup.py defines; paths in it are relative to the checkout."""
    source = (ROOT / "setup.py").read_text().rpartition("\nsetup(")[0]
    namespace: dict[str, Any] = {"__name__": "setup_script"}
    with contextlib.chdir(ROOT):
        exec(compile(source, "setup.py", "exec"), namespace)
    return namespace
