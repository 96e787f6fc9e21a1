"""A small model that trains, and what a frame of it must say."""

from __future__ import annotations

import gc
import math
from typing import Any

import numpy as np
import torch
from spectral_monitor.step.frame import SpectralFrame
from torch import Tensor, nn

from spectral_kernels.entry.results import METRICS

METHODS = ("tracked", "exact", "randomized")


class Net(nn.Module):
    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, width)
        self.block = nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True)
        self.head = nn.Linear(width, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(self.embed(x)))
        return out


def update(model: nn.Module, seed: int) -> None:
    """One deterministic training step."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 7, (4, 3), generator=generator)
    model.eval()  # no dropout
    loss = nn.functional.cross_entropy(model(x).flatten(0, 1), x.flatten())
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad


def due(frame: SpectralFrame | None) -> SpectralFrame:
    assert frame is not None
    return frame


def assert_same(a: SpectralFrame, b: SpectralFrame, *, tolerance: float = 0.0) -> None:
    assert a.matrices.keys() == b.matrices.keys()
    for name, row in a.matrices.items():
        other = b.matrices[name]
        np.testing.assert_allclose(row.singular_values, other.singular_values, atol=tolerance)
        for metric in METRICS:
            np.testing.assert_allclose(getattr(row, metric), getattr(other, metric), atol=tolerance)
    for mine, theirs in ((a.alignment, b.alignment), (a.agreement, b.agreement)):
        assert mine.keys() == theirs.keys()
        for key, values in mine.items():  # type: ignore[attr-defined]
            np.testing.assert_allclose(values, theirs[key], atol=tolerance)


def truth(A: Tensor) -> dict[str, Any]:
    S = np.linalg.svd(A.detach().double().numpy(), compute_uv=False)
    p = S[S > 0] / S.sum()
    entropy = float(-(p * np.log(p)).sum())
    return {
        "singular_values": S,
        "effective_rank": entropy,
        "effective_rank_exp": math.exp(entropy),
        "stable_rank": float((S**2).sum() / S[0] ** 2),
        "spectral_norm": float(S[0]),
        "nuclear_norm": float(S.sum()),
        "frobenius_norm": float(np.sqrt((S**2).sum())),
    }


def held_bytes(root: Any, without: set[int]) -> int:
    """Bytes of all tensors and arrays that can be reached, each piece of memory once."""
    seen: set[int] = set()
    memory: dict[int, int] = {}
    stack = [root]
    while stack:
        item = stack.pop()
        if id(item) in seen or isinstance(item, type | type(math)):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            storage = item.untyped_storage()
            memory[storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, np.ndarray):
            owner: Any = item
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            memory[owner.ctypes.data] = owner.nbytes
        elif not isinstance(item, nn.Module):
            # Functions lead to the whole interpreter through their globals.
            function = hasattr(item, "__globals__")
            stack.extend(item.__closure__ or () if function else gc.get_referents(item))
    return sum(size for pointer, size in memory.items() if pointer not in without)


def assert_within_bounds(frame: SpectralFrame, model: nn.Module) -> None:
    for name, row in frame.matrices.items():
        expected = truth(model.get_parameter(name))
        error = np.abs(row.singular_values - expected.pop("singular_values"))
        assert (error <= row.singular_value_bounds).all(), name
        for metric, value in expected.items():
            assert abs(getattr(row, metric) - value) <= row.bounds[metric], (name, metric)


def jolt(model: nn.Module, seed: int, size: float = 1e-3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += size * torch.randn(p.shape, generator=generator)


def everything(model: nn.Module) -> dict[str, Any]:
    """All that a monitor could leave on a model."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        attributes = vars(module)
        state[name] = sorted(attributes)
        hooks = {key: len(value) for key, value in attributes.items() if "hooks" in key and value}
        state[f"{name} hooks"] = hooks
    for name, parameter in model.named_parameters():
        state[f"{name} attributes"] = sorted(vars(parameter))
        state[f"{name} hooks"] = parameter._backward_hooks
        state[f"{name} version"] = parameter._version
        state[f"{name} pointer"] = parameter.data_ptr()
    return state
