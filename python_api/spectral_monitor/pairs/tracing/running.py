"""A forward pass that leaves no trace of itself in the model."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from spectral_monitor.pairs.tracing.keeping import Keeping
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["undisturbed"]


@contextlib.contextmanager
def undisturbed(model: nn.Module, inputs: Any = ()) -> Iterator[Keeping]:
    """Inside, the model is in evaluation mode without gradients, and every operation is visible.

    Afterwards flags, attributes, weights, gradients, buffers, inputs, caches that hang on either
    and the random states of torch, NumPy and Python are what they were; what the pass writes to is
    kept where `Keeping.before` is told of every operation. Fast paths that skip PyTorch's own
    operations are off: those of `nn.MultiheadAttention` and `nn.TransformerEncoder`, compiled
    functions, fused attention; so is the memory of casts, which does not say what was cast.
    """
    attributes = [_Attributes(module) for module in model.modules()]
    keeping = _keeping(model, inputs)
    states = random.getstate(), np.random.get_state()
    fast = torch.backends.mha.get_fastpath_enabled()
    caches = torch.is_autocast_cache_enabled()
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
            torch.clear_autocast_cache()
            torch.set_autocast_cache_enabled(False)
            # Not by ``eval()``: some modules merge weights or empty caches there.
            for module in model.modules():
                module.training = False
            yield keeping
    finally:
        torch.set_autocast_cache_enabled(caches)
        torch.backends.mha.set_fastpath_enabled(fast)
        for kept in attributes:
            kept.restore()
        keeping.restore()
        random.setstate(states[0])
        np.random.set_state(states[1])


def _keeping(model: nn.Module, inputs: Any) -> Keeping:
    """All that the pass can reach and write to, with a copy of the buffers.

    Norms do not declare that they write to their buffers.
    """
    keeping = Keeping()
    keeping.add(inputs)
    for module in model.modules():
        for name, value in module.__dict__.items():
            if name != "_modules":
                keeping.add(value)
        for buffer in module._buffers.values():
            if buffer is not None:
                keeping.save(buffer)
    return keeping


def _has_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


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
