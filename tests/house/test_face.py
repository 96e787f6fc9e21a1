"""The face: every public name, loaded from where it is, and nothing heavy unless asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import spectral_kernels as sk

ROOT = Path(__file__).resolve().parents[2]
FACE = ROOT / "spectral_kernels/__init__.py"
HEAVY = ("spectral_monitor", "matplotlib", "plotly", "jinja2", "pandas", "triton", "cupy")


def named_for_types() -> dict[str, str]:
    """Name -> module of the imports that a type checker sees and nothing else does."""
    (guarded,) = [
        node
        for node in ast.parse(FACE.read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    return {
        alias.name: str(node.module)
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_every_public_name_is_there_and_says_where_it_is_from() -> None:
    lazy = named_for_types()
    for name in sk.__all__:
        value = getattr(sk, name)
        assert value is not None
        if name in lazy:
            assert value.__module__ == lazy[name], name
        else:
            assert value.__module__.startswith("spectral_kernels."), name
    assert set(lazy) <= set(sk.__all__)
    assert len(sk.__all__) == len(set(sk.__all__))
    assert set(sk.__all__) <= set(dir(sk))


def test_nothing_heavy_is_loaded_before_it_is_asked_for() -> None:
    program = (
        "import sys, spectral_kernels as sk\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
        "sk.SpectralMonitor, sk.load_run, sk.MatrixRegistry, sk.trace\n"
        "print([name for name in ('matplotlib', 'plotly', 'jinja2') if name in sys.modules])\n"
        "sk.plot_run\n"
        "print('matplotlib' in sys.modules, 'plotly' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[]", "[]", "True False"]


def test_importing_costs_little_beside_torch() -> None:
    # The processor's time, which other processes do not move: 0.09 s of some 2 s for torch.
    program = (
        "import time, torch\n"
        "start = time.process_time()\n"
        "import spectral_kernels\n"
        "print(time.process_time() - start)"
    )
    taken = [float(subprocess.check_output([sys.executable, "-c", program])) for _ in range(3)]
    assert min(taken) < 0.3
