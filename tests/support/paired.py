"""Alignments of a model's pairs against NumPy's."""

from __future__ import annotations

import numpy as np
import torch
from spectral_monitor.monitor import SpectralMonitor
from torch import Tensor, nn

from tests.support.named_models import Named


def watch(model: nn.Module | dict[str, Tensor], **options: object) -> SpectralMonitor:
    return SpectralMonitor(model, reference=None, **options)  # type: ignore[arg-type]


def keys(model: nn.Module | dict[str, Tensor], **options: object) -> list[tuple[str, str]]:
    return [pair.key for pair in watch(model, **options).pairs]


def layer_pairs(model: nn.Module | dict[str, Tensor], **options: object) -> list[tuple[str, str]]:
    """The pairs, without ``.weight``."""
    pairs = keys(model, **options)
    return [(a.replace(".weight", ""), b.replace(".weight", "")) for a, b in pairs]


def svd(A: Tensor) -> tuple[np.ndarray, np.ndarray]:
    U, _, Vh = np.linalg.svd(A.detach().double().numpy(), full_matrices=False)
    return U, Vh


def check(model: nn.Module, key: tuple[str, str], expected: np.ndarray) -> None:
    """Hold one recorded diagonal against |U^T V'| of NumPy's vectors, float64."""
    model.double()
    frame = watch(model).step()
    assert frame is not None
    np.testing.assert_allclose(frame.alignment[key], np.abs(expected), atol=1e-9)


def diagonal(U: np.ndarray, Vh: np.ndarray) -> np.ndarray:
    return np.diagonal(U.T @ Vh.T)[:100]


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def attention(heads: int | None = 2, kv: int = 8, **extra: nn.Module) -> nn.Module:
    layers = Named(
        q_proj=nn.Linear(8, 8), k_proj=nn.Linear(8, kv), v_proj=nn.Linear(8, kv),
        o_proj=nn.Linear(8, 8), **extra,
    )  # fmt: skip
    if heads is not None:
        layers.num_heads = heads
    return Named(attn=layers, up=nn.Linear(8, 12))
