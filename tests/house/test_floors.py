"""Imports go down only, and a heavy package is imported in its one adapter file.

Down means three things: from a floor to the floors below it; inside a package from a room to the
rooms below it; and inside every folder the files and subfolders, each taken as one thing, import
each other in one direction only. Read from the syntax tree, so imports inside functions count;
those under ``if TYPE_CHECKING`` load nothing and count only where they go up a floor.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Package -> its floor and the source root that it lies in.
FLOORS = {"spectral_kernels": 0, "spectral_monitor": 1, "experiments": 2}
SOURCES = {"spectral_monitor": "python_api"}
ONLOOKERS = {"tests", "benchmarks"}

# The rooms of a package from the ground up; its own files lie above them, but for those that are
# named here, which are as low as they stand.
ROOMS = {
    "spectral_kernels": (
        ("runtime",),
        ("entry",),
        ("products", "snapshot", "alignment"),
        ("svd",),
        ("rsvd", "rank"),
        ("tracking", "factored"),
    ),
    "spectral_monitor": (
        ("cadence",),
        ("model",),
        ("memory",),
        ("pairs",),
        ("step",),
        ("device", "run"),
        ("figures",),
        ("decomposed",),
    ),
}

# PEP 562: the face names what lies above it, and loads it when it is asked for.
FACE = "spectral_kernels/__init__.py"

# Package -> the one file that may import it, or patterns of the few; None: no file yet. tqdm,
# matplotlib and pandas of the training scripts follow the same rule: they ask the file named here.
ADAPTERS: dict[str, str | tuple[str, ...] | None] = {
    "click": None,
    "cupy": ("spectral_kernels/entry/arrays.py", "spectral_kernels/runtime/cuda/nvrtc.py"),
    "jinja2": "python_api/spectral_monitor/figures/report.py",
    "lightning": None,
    "matplotlib": "python_api/spectral_monitor/figures/panels.py",
    "pandas": "python_api/spectral_monitor/step/dataframes.py",
    "plotly": "python_api/spectral_monitor/figures/report.py",
    "pytorch_lightning": None,
    # Peers in benchmarks; in the training scripts the digits that come with it.
    "sklearn": "experiments/kit/datasets.py",
    "tqdm": "experiments/kit/progress.py",
    "transformers": None,
    "triton": (
        "spectral_kernels/runtime/triton/device.py",
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


def imports(root: Path) -> Iterator[tuple[str, str, int, str, bool]]:
    """Yield (file, module, line, imported name, for types only) of every import in the house."""
    for floor in FLOORS:
        source = root / SOURCES.get(floor, "")
        for path in sorted((source / floor).rglob("*.py")):
            module = path.relative_to(source).with_suffix("")
            visitor = Imports(".".join(module.parent.parts))
            visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
            for line, name, typing_only in visitor.found:
                file = path.relative_to(root).as_posix()
                yield file, ".".join(module.parts), line, name, typing_only


def violations(root: Path) -> list[str]:
    """Return every breach of the rules under ``root``, one line each."""
    breaches = []
    inside: dict[str, dict[str, set[str]]] = {}
    for file, module, line, name, typing_only in imports(root):
        reason = breach(file, module, name, typing_only)
        if reason:
            breaches.append(f"{file}:{line}: {reason}")
        elif not typing_only and file != FACE:
            note_inside(inside, module, name)
    return [*breaches, *circles(inside)]


def breach(file: str, module: str, name: str, typing_only: bool) -> str | None:
    """Return why ``module`` may not import ``name``, or None where it may."""
    floor = module.partition(".")[0]
    top, _, rest = name.partition(".")
    if top in ONLOOKERS:
        return f"imports {top}, which only looks on"
    if FLOORS.get(top, 0) > FLOORS[floor] and not (file == FACE and typing_only):
        return f"imports {name}, a floor up"
    # Inside the house a name comes from the file that has it, not from the face.
    if floor == "spectral_monitor" and top == "spectral_kernels" and rest.count(".") == 0:
        return f"imports {name} from the face instead of from a submodule"
    if top == floor and not typing_only and height(module) < height(name):
        return f"imports {name}, a room up"
    if top in ADAPTERS and not typing_only:
        patterns = adapters(top)
        if not any(fnmatch(file, pattern) for pattern in patterns):
            return f"imports {top}, which only {' or '.join(patterns) or 'no file yet'} may"
    return None


def height(module: str) -> int:
    """Return how high the room of a module lies in its package; files of the package lie on top."""
    package, _, rest = module.partition(".")
    rooms = ROOMS.get(package, ())
    room = rest.partition(".")[0]
    # The compiled module and the version are asked of the face by everyone.
    if room in ("_C", ""):
        return -1
    return next((i for i, names in enumerate(rooms) if room in names), len(rooms))


def note_inside(inside: dict[str, dict[str, set[str]]], module: str, name: str) -> None:
    """Note under every folder that holds both, which of its children imports which."""
    a, b = module.split("."), name.split(".")
    for depth in range(1, min(len(a), len(b))):
        if a[:depth] != b[:depth]:
            return
        if a[depth] != b[depth] and "__init__" not in (a[depth], b[depth]) and b[depth] != "_C":
            inside.setdefault(".".join(a[:depth]), {}).setdefault(a[depth], set()).add(b[depth])
            return


def circles(inside: dict[str, dict[str, set[str]]]) -> list[str]:
    """Return the folders whose files and subfolders import each other in circles."""
    found = []
    for folder, graph in sorted(inside.items()):
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            found.append(f"{folder}: in a circle: {' imports '.join(reversed(error.args[1]))}")
    return found


def adapters(package: str) -> tuple[str, ...]:
    """Return the patterns of the files that may import ``package``."""
    given = ADAPTERS[package]
    return given if isinstance(given, tuple) else (given,) if given else ()


def test_the_house_keeps_the_rules() -> None:
    assert violations(ROOT) == []


def test_no_test_imports_a_test() -> None:
    """What two tests share lies in ``tests/support``."""
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        visitor = Imports(".".join(path.relative_to(ROOT).parent.parts))
        visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
        for line, name, _ in visitor.found:
            if any(part.startswith("test_") for part in name.split(".")[:-1]):
                found.append(f"{path.relative_to(ROOT)}:{line}: imports {name}")
    assert found == []


def test_every_room_is_there() -> None:
    for package, rooms in ROOMS.items():
        folder = ROOT / SOURCES.get(package, "") / package
        here = {p.stem for p in folder.iterdir() if p.is_dir() or p.suffix == ".py"}
        assert {name for names in rooms for name in names} <= here


def test_adapters_exist_and_use_what_they_adapt() -> None:
    for package in ADAPTERS:
        for pattern in adapters(package):
            files = list(ROOT.glob(pattern.replace("/*/", "/**/")))
            assert files, f"{pattern}: no such file"
            for file in files:
                assert package in file.read_text(encoding="utf-8"), f"{file}: no {package}"


def test_private_names_of_torch_are_in_one_file() -> None:
    private = re.compile(r"\btorch(\.\w+)*\._(?!_version__)[a-zA-Z]|forward_ad\._|\.mkldnn\._")
    for floor in ("spectral_kernels", "spectral_monitor"):
        for path in (ROOT / SOURCES.get(floor, "") / floor).rglob("*.py"):
            if path.name == "torch_internals.py":
                continue
            code = ast.unparse(ast.parse(path.read_text(encoding="utf-8")))
            named = [x for x in code.splitlines() if private.search(x) and "'torch._" not in x]
            assert named == [], path


GUARDED = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "
MONITOR = "python_api/spectral_monitor/monitor.py"
SVD = "spectral_kernels/svd/op.py"


@pytest.mark.parametrize(
    ("file", "code", "reason"),
    [
        (SVD, "import spectral_monitor", "a floor up"),
        (SVD, "from spectral_monitor.monitor import X", "a floor up"),
        (SVD, "def f():\n    import spectral_monitor.monitor", "a floor up"),
        (SVD, GUARDED + "import spectral_monitor", "a floor up"),
        (SVD, "import importlib\nimportlib.import_module('spectral_monitor')", "a floor up"),
        (FACE, "from spectral_monitor.monitor import X", "a floor up"),
        (SVD, "from spectral_kernels.tracking.op import SpectrumTracker", "a room up"),
        ("spectral_kernels/runtime/dispatch.py", "from ..entry import arrays", "a room up"),
        ("spectral_kernels/svd/cpu.py", "from spectral_kernels.capabilities import x", "a room up"),
        ("python_api/spectral_monitor/model/matrix.py", "from ..step import frame", "a room up"),
        (MONITOR, "import experiments.kit", "a floor up"),
        (MONITOR, "import spectral_kernels as sk", "from the face"),
        (MONITOR, "from spectral_kernels import svd", "from the face"),
        (MONITOR, "import matplotlib.pyplot as plt", "figures/panels.py may"),
        (MONITOR, "try:\n    import pandas\nexcept ImportError: pass", "pandas"),
        (MONITOR, "from tests import matrices", "only looks on"),
        ("experiments/a/train.py", "from benchmarks.x import y", "only looks on"),
        ("experiments/a/train.py", "import wandb", "no file yet may"),
        ("spectral_kernels/rank/op.py", "import triton.language as tl", "triton_*kernels.py may"),
        ("spectral_kernels/rank/triton_backend.py", "import triton", "triton_*kernels.py may"),
        ("spectral_kernels/runtime/triton/x.py", "import triton", "triton_*kernels.py may"),
    ],
)
def test_the_test_bites(tmp_path: Path, file: str, code: str, reason: str) -> None:
    put(tmp_path, file, code)
    found = violations(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(f"{file}:")
    assert reason in found[0]


def test_circles_between_files_and_folders_are_found(tmp_path: Path) -> None:
    put(tmp_path, "spectral_kernels/svd/a.py", "from spectral_kernels.svd.deep.b import x")
    put(tmp_path, "spectral_kernels/svd/deep/b.py", "from spectral_kernels.svd import c")
    assert violations(tmp_path) == []
    put(tmp_path, "spectral_kernels/svd/c.py", "from spectral_kernels.svd.a import x")
    (circle,) = violations(tmp_path)
    assert circle.startswith("spectral_kernels.svd: in a circle: ")
    assert {"a", "deep", "c"} <= set(circle.split())


@pytest.mark.parametrize(
    ("file", "code"),
    [
        (SVD, "from spectral_kernels import _C\nfrom spectral_kernels.entry import checks"),
        (SVD, "from . import truth\nfrom ..entry import checks\nimport torch"),
        ("spectral_kernels/entry/arrays.py", "def f():\n    import cupy"),
        ("spectral_kernels/tracking/leading/triton_kernels.py", "import triton.language as tl"),
        (FACE, GUARDED + "from spectral_monitor.monitor import SpectralMonitor"),
        (MONITOR, "from spectral_kernels.svd.op import svd"),
        (MONITOR, "from spectral_monitor.step.frame import SpectralFrame"),
        (MONITOR, GUARDED + "import pandas as pd"),
        ("python_api/spectral_monitor/figures/panels.py", "import matplotlib.pyplot as plt"),
        ("experiments/a/train.py", "import spectral_kernels as sk\nimport spectral_monitor"),
    ],
)
def test_what_is_allowed(tmp_path: Path, file: str, code: str) -> None:
    put(tmp_path, file, code)
    assert violations(tmp_path) == []


def put(root: Path, file: str, code: str) -> None:
    target = root / file
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(code)
