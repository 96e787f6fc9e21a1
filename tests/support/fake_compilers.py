"""Compilers for tests of packaging: what is packed matters there, not how fast it runs."""

from __future__ import annotations

from pathlib import Path

NVCC = """#!/bin/sh
echo "$@" >> {log}
{command}
for last; do :; done
echo image > "$last"
"""

# The same files without optimisation: a wheel takes a third of the time.
CXX = """#!/bin/sh
for argument; do
  shift
  [ "$argument" = -O3 ] && argument=-O0
  set -- "$@" "$argument"
done
exec {compiler} "$@"
"""


def fake_nvcc(folder: Path, command: str = "") -> Path:
    """Write ``bin/nvcc``: it notes its calls in ``log``, does ``command``, writes a word."""
    return _script(folder / "bin/nvcc", NVCC.format(log=folder / "log", command=command))


def quick_compiler(folder: Path, compiler: str) -> Path:
    """Write a compiler that does not optimise."""
    return _script(folder / "bin/cxx", CXX.format(compiler=compiler))


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path
