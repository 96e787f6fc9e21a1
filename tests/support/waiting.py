"""What would make the host wait for a GPU, refused on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpretedFunction

_OPERATIONS = {
    "_local_scalar_dense", "nonzero", "nonzero_numpy", "is_nonzero", "masked_select", "equal",
    "_unique2", "unique_dim", "unique_consecutive", "bincount",
}  # fmt: skip
_METHODS = ("tolist", "numpy", "item", "cpu", "__bool__", "__int__", "__float__", "__index__")


class Refusal(TorchDispatchMode):
    """Raises where a value, or a size that hangs on values, is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if (name in _OPERATIONS or by_mask) and not self.paused:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def nothing_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Refusal]:
    """Refuse inside; a kernel that is interpreted reads its arguments and is let through."""
    refusal = Refusal()
    with monkeypatch.context() as patch, refusal:
        for method in _METHODS:
            patch.setattr(torch.Tensor, method, _refused(refusal, method))
        patch.setattr(InterpretedFunction, "run", _counted(refusal))
        yield refusal


def _refused(refusal: Refusal, method: str) -> Any:
    original = getattr(torch.Tensor, method)

    def ask(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not refusal.paused:
            raise AssertionError(f"Tensor.{method} waits for the device")
        return original(tensor, *args, **kwargs)

    return ask


def _counted(refusal: Refusal) -> Any:
    original = InterpretedFunction.run

    def run(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        refusal.launches += 1
        refusal.paused = True
        try:
            return original(kernel, *args, **kwargs)
        finally:
            refusal.paused = False

    return run
