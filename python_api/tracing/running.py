"""A forward pass that leaves no trace of itself in the model."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["undisturbed"]


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode without gradients, and every operation is visible.

    Afterwards flags, attributes, buffers, and the random states of torch, NumPy and Python are what
    they were. Fast paths that skip PyTorch's own operations are off: those of
    `nn.MultiheadAttention` and `nn.TransformerEncoder`, compiled functions, fused attention.
    """
    attributes = [_Attributes(module) for module in model.modules()]
    buffers = [(buffer, buffer._version, buffer.clone()) for buffer in _buffers(model)]
    states = random.getstate(), np.random.get_state()
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        with contextlib.ExitStack() as stack:
            devices = list(range(torch.cuda.device_count())) if _has_cuda() else []
            stack.enter_context(torch.random.fork_rng(devices))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            # Without it nothing is compiled, and the import takes seconds.
            if "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            torch.backends.mha.set_fastpath_enabled(False)
            model.eval()
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for kept in attributes:
            kept.restore()
        with torch.no_grad():
            for buffer, version, values in buffers:
                if buffer._version != version:
                    buffer.copy_(values)
        random.setstate(states[0])
        np.random.set_state(states[1])


def _has_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _buffers(model: nn.Module) -> list[Tensor]:
    return [b for b in model.buffers() if not b.is_meta and b.layout == torch.strided]


class _Attributes:
    """What a module's own dictionaries hold: the same objects under the same names."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._own = dict(module.__dict__)
        tables = ("_parameters", "_buffers", "_modules")
        self._tables: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (module.__dict__[name], dict(module.__dict__[name])) for name in tables
        ]

    def restore(self) -> None:
        now = self._module.__dict__
        now.clear()
        now.update(self._own)
        for table, before in self._tables:
            table.clear()
            table.update(before)
