"""What the `state_dict` of a monitor must have in common with the monitor that loads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spectral_monitor.model.matrix import Matrix

__all__ = ["STATE_VERSION", "check_state"]

STATE_VERSION = 5


def check_state(state: Mapping[str, Any], method: str, matrices: Sequence[Matrix]) -> None:
    """Raise `ValueError`, naming what differs, for a state of another method or other matrices."""
    if state.get("version") != STATE_VERSION:
        raise ValueError(f"state: version {state.get('version')!r}, expected {STATE_VERSION}")
    if state["method"] != method:
        raise ValueError(f"state: made by method {state['method']!r}, this monitor has {method!r}")
    inner = state.get("inner", {})
    given = {name: _told(shape, inner.get(name)) for name, shape in state["shapes"].items()}
    here = {matrix.name: _told(matrix.shape, matrix.inner) for matrix in matrices}
    if given != here:
        lines = [
            f"{name}: {given.get(name, 'missing')} in the state, {here.get(name, 'missing')} here"
            for name in dict.fromkeys([*given, *here])
            if given.get(name) != here.get(name)
        ]
        raise ValueError(f"state: the matrices differ ({'; '.join(lines[:8])})")


def _told(shape: Sequence[int], inner: int | None) -> str:
    return f"{tuple(shape)}" + (f" as factors of k = {inner}" if inner is not None else "")
