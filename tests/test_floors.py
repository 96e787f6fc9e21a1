"""Imports go down only, and a heavy package is imported in its one adapter file.

Read from the syntax tree, so imports inside functions count; those under ``if TYPE_CHECKING``
load nothing and count only where they go up a floor.
"""

from __future__ import annotations

import ast
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {"spectral_kernels": 0, "python_api": 1, "experiments": 2}
ONLOOKERS = {"tests", "benchmarks"}

# PEP 562: the face names what lies above it, and loads it when it is asked for.
FACE = "spectral_kernels/__init__.py"

# Package -> the one file that may import it, or patterns of the few; None: no file yet. tqdm,
# matplotlib and pandas of the training scripts follow the same rule: they ask the file named here.
ADAPTERS: dict[str, str | tuple[str, ...] | None] = {
    "click": None,
    "cupy": ("spectral_kernels/cupy_arrays.py", "spectral_kernels/cuda/nvrtc.py"),
    "jinja2": "python_api/report.py",
    "lightning": None,
    "matplotlib": "python_api/plots.py",
    "pandas": "python_api/dataframes.py",
    "plotly": "python_api/report.py",
    "pytorch_lightning": None,
    # Peers in benchmarks; in the training scripts the digits that come with it.
    "sklearn": "experiments/kit/datasets.py",
    "tqdm": "experiments/kit/progress.py",
    "transformers": None,
    "triton": (
        "spectral_kernels/triton_device.py",
        "spectral_kernels/*/triton_*kernels.py",
    ),
    "wandb": None,
}


class Imports(ast.NodeVisitor):
    """Collect (line, full name, for types only) of every import of a module."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.found: list[tuple[int, str, bool]] = []
        self.typing_only = False

    def visit_If(self, node: ast.If) -> None:
        guarded = "TYPE_CHECKING" in ast.unparse(node.test)
        before, self.typing_only = self.typing_only, self.typing_only or guarded
        for child in node.body:
            self.visit(child)
        self.typing_only = before
        for child in node.orelse:
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [(node.lineno, alias.name, self.typing_only) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        parent = self.package.split(".")[: len(self.package.split(".")) - node.level + 1]
        base = ".".join([*parent, *([node.module] if node.module else [])]) if node.level else ""
        module = base or node.module or ""
        self.found += [(node.lineno, f"{module}.{a.name}", self.typing_only) for a in node.names]

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func)
        if name.split(".")[-1] in ("import_module", "__import__", "importorskip") and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                self.found.append((node.lineno, argument.value, self.typing_only))
        self.generic_visit(node)


def violations(root: Path) -> list[str]:
    """Return every breach of the rules under ``root``, one line each."""
    told = []
    for floor in FLOORS:
        for path in sorted((root / floor).rglob("*.py")):
            file = path.relative_to(root).as_posix()
            package = ".".join(path.relative_to(root).parent.parts)
            visitor = Imports(package)
            visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
            for line, name, typing_only in visitor.found:
                reason = breach(file, floor, name, typing_only)
                if reason:
                    told.append(f"{file}:{line}: {reason}")
    return told


def breach(file: str, floor: str, name: str, typing_only: bool) -> str | None:
    """Return why ``file`` may not import ``name``, or None where it may."""
    top, _, rest = name.partition(".")
    if top in ONLOOKERS:
        return f"imports {top}, which only looks on"
    if FLOORS.get(top, 0) > FLOORS[floor] and not (file == FACE and typing_only):
        return f"imports {name}, a floor up"
    # Inside the house a name comes from the file that has it, not from the face.
    if floor == "python_api" and top == "spectral_kernels" and rest.count(".") == 0:
        return f"imports {name} from the face instead of from a submodule"
    if top in ADAPTERS and not typing_only:
        patterns = adapters(top)
        if not any(fnmatch(file, pattern) for pattern in patterns):
            return f"imports {top}, which only {' or '.join(patterns) or 'no file yet'} may"
    return None


def adapters(package: str) -> tuple[str, ...]:
    """Return the patterns of the files that may import ``package``."""
    given = ADAPTERS[package]
    return given if isinstance(given, tuple) else (given,) if given else ()


def test_the_house_keeps_the_rules() -> None:
    assert not violations(ROOT)


def test_adapters_exist_and_use_what_they_adapt() -> None:
    for package in ADAPTERS:
        for pattern in adapters(package):
            files = list(ROOT.glob(pattern.replace("/*/", "/**/")))
            assert files, f"{pattern}: no such file"
            for file in files:
                assert package in file.read_text(encoding="utf-8"), f"{file}: no {package}"


GUARDED = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "


@pytest.mark.parametrize(
    ("file", "code", "reason"),
    [
        ("spectral_kernels/svd/op.py", "import python_api", "a floor up"),
        ("spectral_kernels/svd/op.py", "from python_api.monitor import X", "a floor up"),
        ("spectral_kernels/svd/op.py", "def f():\n    import python_api.monitor", "a floor up"),
        ("spectral_kernels/svd/op.py", GUARDED + "import python_api", "a floor up"),
        ("spectral_kernels/svd/op.py", "from ...python_api import monitor", None),
        (
            "spectral_kernels/x.py",
            "import importlib\nimportlib.import_module('python_api')",
            "a floor up",
        ),
        ("spectral_kernels/__init__.py", "from python_api.monitor import X", "a floor up"),
        ("python_api/monitor.py", "import experiments.kit", "a floor up"),
        ("python_api/monitor.py", "import spectral_kernels as sk", "from the face"),
        ("python_api/monitor.py", "from spectral_kernels import svd", "from the face"),
        ("python_api/monitor.py", "import matplotlib.pyplot as plt", "python_api/plots.py may"),
        ("python_api/monitor.py", "try:\n    import pandas\nexcept ImportError: pass", "pandas"),
        ("python_api/monitor.py", "from tests import matrices", "only looks on"),
        ("experiments/a/train.py", "from benchmarks.x import y", "only looks on"),
        ("experiments/a/train.py", "import wandb", "no file yet may"),
        ("spectral_kernels/rank/op.py", "import triton.language as tl", "triton_*kernels.py may"),
        ("spectral_kernels/rank/triton_backend.py", "import triton", "triton_*kernels.py may"),
        ("spectral_kernels/triton_runtime.py", "import triton", "triton_*kernels.py may"),
    ],
)
def test_the_test_bites(tmp_path: Path, file: str, code: str, reason: str | None) -> None:
    target = tmp_path / file
    target.parent.mkdir(parents=True)
    target.write_text(code)
    found = violations(tmp_path)
    if reason is None:
        return
    assert len(found) == 1
    assert found[0].startswith(f"{file}:")
    assert reason in found[0]


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("spectral_kernels/svd/op.py", "from spectral_kernels import _C, checks\nimport torch"),
        ("spectral_kernels/svd/op.py", "from . import reference\nfrom .. import checks"),
        ("spectral_kernels/cupy_arrays.py", "def f():\n    import cupy"),
        ("spectral_kernels/tracking/leading/triton_kernels.py", "import triton.language as tl"),
        (FACE, GUARDED + "from python_api.monitor import SpectralMonitor"),
        ("python_api/monitor.py", "from spectral_kernels.svd.op import svd"),
        ("python_api/monitor.py", GUARDED + "import pandas as pd"),
        ("python_api/plots.py", "import matplotlib.pyplot as plt"),
        ("experiments/a/train.py", "import spectral_kernels as sk\nimport python_api.monitor"),
    ],
)
def test_what_is_allowed(tmp_path: Path, file: str, code: str) -> None:
    target = tmp_path / file
    target.parent.mkdir(parents=True)
    target.write_text(code)
    assert violations(tmp_path) == []
