"""Seeds, and checkpoints that a kill at any moment cannot tear."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` and the global generators' states to ``path`` atomically.

    The file is written beside ``path``, synced, and renamed over it: a reader, or a process started
    after a kill, finds the last whole checkpoint. Values are tensors, numbers, strings and
    containers of them, so that loading needs no pickled code.
    """
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save({**state, "rng": _generator_states()}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """The state that `save_checkpoint` wrote, or None where there is no file.

    The global generators are set to where they were.
    """
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    _set_generator_states(state.pop("rng"))
    return state


def _generator_states() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    states = {
        "python": [version, list(words), gauss],
        "numpy": [name, [int(key) for key in keys], *(float(x) for x in rest)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _set_generator_states(states: dict[str, Any]) -> None:
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(
        (name, np.array(keys, dtype=np.uint32), int(position), int(has_gauss), cached)
    )
    # map_location moves every tensor, but generator states are only accepted from host memory.
    torch.set_rng_state(states["torch"].cpu())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
