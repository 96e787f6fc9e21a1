"""No function is longer than 60 lines, no file longer than 400: what is longer is two ideas.

Device code is left out, for a kernel is one computation: functions of Triton, and of CUDA's files.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("spectral_kernels", "python_api", "experiments", "benchmarks", "tests", "csrc")
SUFFIXES = {".py", ".pyi", ".h", ".cpp", ".cuh", ".cu"}
FUNCTION_LINES, FILE_LINES = 60, 400


def files(root: Path) -> Iterator[tuple[str, str]]:
    """Yield (path from ``root``, text) of every file that is measured."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            if path.suffix in SUFFIXES and not hidden:
                yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")


def long_files(root: Path) -> set[str]:
    return {path for path, text in files(root) if text.count("\n") > FILE_LINES}


def long_functions(root: Path) -> set[str]:
    """Return ``path::name`` of every function that is too long."""
    found = set()
    for path, text in files(root):
        suffix = path[path.rindex(".") :]
        lengths = LANGUAGES[suffix](text) if suffix in LANGUAGES else ()
        found |= {f"{path}::{name}" for name, lines in lengths if lines > FUNCTION_LINES}
    return found


def python_functions(text: str) -> Iterator[tuple[str, int]]:
    """Yield (name, lines) of each function without its decorators, but for kernels of Triton."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = " ".join(ast.unparse(d) for d in node.decorator_list)
            if "jit" not in decorators:
                yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


# Comments, strings, characters, empty defaults, preprocessor lines: their braces open no body.
NO_CODE = re.compile(
    r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|=\s*\{\}|(?<!\w)'(?:\\.|[^'\\])'|^\#(?:\\\n|[^\n])*""",
    re.M | re.S,
)
# What stands before the body of a function: its name, its arguments and what may follow them.
BODY = re.compile(
    r"\S[^=]*?(?P<name>\w+|operator\W+?)\s*\(.*\)\s*(const|noexcept|override|->.*)*\s*$", re.S
)


def cxx_functions(text: str) -> Iterator[tuple[str, int]]:
    """Yield (name, lines) of each function with a body; what a body holds is part of it."""
    code = NO_CODE.sub(lambda skipped: "\n" * skipped[0].count("\n"), text)
    depth, head = 0, 0
    inside: tuple[str, int, int] | None = None
    for place in re.finditer(r"[;{}]", code):
        at = place.start()
        if place[0] == "{":
            function = BODY.search(code[head:at])
            if function and not inside:
                inside = (function["name"], head + function.start(), depth)
            depth += 1
        elif place[0] == "}":
            depth -= 1
            if inside and inside[2] == depth:
                yield inside[0], code.count("\n", inside[1], at) + 1
                inside = None
        head = at + 1


LANGUAGES = {".py": python_functions, ".h": cxx_functions, ".cpp": cxx_functions}


def test_no_file_is_too_long() -> None:
    assert not long_files(ROOT)


def test_no_function_is_too_long() -> None:
    assert not long_functions(ROOT)


CXX = """
// void commented() {
namespace ns {
struct S {
  int method(int a) const {
    return a;
  }
};
template <class T>
void loops(T* x,
           int n) {
  for (int i = 0; i < n; ++i) {
    auto f = [&](int j) { return '{' + j; };
    x[i] = f(i);
  }
}
constexpr int kTable[] = {1, 2};
}  // namespace ns
"""


def test_lengths_are_counted(tmp_path: Path) -> None:
    assert list(cxx_functions(CXX)) == [("method", 3), ("loops", 8)]
    source = "class A:\n    def f(self):\n        def g(): ...\n        return g\n"
    assert list(python_functions(source)) == [("f", 3), ("g", 1)]
    kernel = "@triton.jit\ndef k(x):\n" + 70 * "    x\n"
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc/a.py").write_text("def f():\n" + 60 * "    0\n" + kernel)
    (tmp_path / "csrc/a.cpp").write_text("void g() {\n" + 400 * "  ;\n" + "}\n")
    (tmp_path / "csrc/a.cu").write_text("void h() {\n" + 398 * "  ;\n" + "}\n")
    assert long_functions(tmp_path) == {"csrc/a.py::f", "csrc/a.cpp::g"}
    assert long_files(tmp_path) == {"csrc/a.cpp"}
