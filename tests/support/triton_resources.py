"""What compiled Triton kernels need.

``python -m tests.support.triton_resources --write [operation ...]`` renews the tables.

Every variant of ``tests/support/triton_variants`` is compiled for its GPUs, which needs none. The
registers, shared memory and stack come from the binary (cuobjdump, which Triton brings along); a
stack is what spilled registers and addressed arrays take.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from spectral_kernels.runtime.triton import host
from tests.support.triton_variants import Variant

HERE = Path(__file__).resolve().parent
TABLES = HERE.parent / "data" / "triton_resources"

Resources = dict[str, int]


def operations() -> list[str]:
    return sorted(path.stem for path in (HERE / "triton_variants").glob("[a-z]*.py"))


def variants(operation: str) -> list[Variant]:
    found: list[Variant] = importlib.import_module(
        f"tests.support.triton_variants.{operation}"
    ).VARIANTS
    return found


def compile_for(variant: Variant, architecture: int) -> Any:
    """Return Triton's compiled kernel."""
    names = variant.kernel.arg_names
    signature = {n: variant.signature.get(n, "constexpr") for n in names}
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in variant.aligned}
    source = ASTSource(variant.kernel, signature, variant.constants, attributes)
    options = {**host.OPTIONS, **variant.options}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def resources(compiled: Any) -> Resources:
    """Return registers, shared memory and stack of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        command = [tool, "--dump-resource-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", told))
    return {
        "registers": int(usage["REG"]),
        "shared_bytes": int(compiled.metadata.shared),
        "stack_bytes": int(usage["STACK"]) + int(usage["LOCAL"]),
    }


def measured(operation: str) -> dict[str, dict[str, Resources]]:
    """Return the resources of every variant on every architecture."""
    return {
        variant.name: {
            f"sm_{architecture}": resources(compile_for(variant, architecture))
            for architecture in variant.architectures
        }
        for variant in variants(operation)
    }


def table(operation: str) -> dict[str, Any]:
    """Return the committed table of an operation."""
    read: dict[str, Any] = json.loads((TABLES / f"{operation}.json").read_text(encoding="utf-8"))
    return read


def write(operation: str) -> None:
    """Renew the committed table of an operation."""
    TABLES.mkdir(parents=True, exist_ok=True)
    content = {"triton": triton.__version__, "kernels": measured(operation)}
    path = TABLES / f"{operation}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    chosen = [name for name in sys.argv[1:] if name != "--write"] or operations()
    for name in chosen:
        if "--write" in sys.argv:
            write(name)
        print(name, json.dumps(measured(name), indent=1))
