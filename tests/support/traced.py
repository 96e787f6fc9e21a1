"""Edges of a trace as lines of text, and modules that are a function of their parts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from spectral_monitor.pairs.tracing.map import Edge, Trace
from torch import Tensor, nn

import spectral_kernels as sk


def drawn(model: nn.Module, *inputs: object, **kwargs: object) -> set[str]:
    """Every edge, as ``kind: a.weight[0:6, 0] -> b.weight[0, 0:6]``."""
    traced = sk.trace(model, *inputs, **kwargs)
    assert not traced.ended, traced.ended
    return {as_line(edge, traced) for edge in traced.edges}


def as_line(edge: Edge, traced: Trace) -> str:
    order = np.argsort(edge.second.elements, kind="stable")
    sides = (one_side(x.parameter, x.elements[order], traced) for x in (edge.first, edge.second))
    return f"{edge.kind}: {' -> '.join(sides)}{' inferred' if edge.inferred else ''}"


def one_side(name: str, elements: np.ndarray, traced: Trace) -> str:
    coordinates = np.unravel_index(elements, traced.shapes[name])
    return f"{name}[{', '.join(map(indices, coordinates))}]"


def indices(x: np.ndarray) -> str:
    if (x == x[0]).all():
        return str(x[0])
    parts = np.split(x, np.flatnonzero(np.diff(x) != 1) + 1)
    if min(map(len, parts)) == 1:
        return "".join(map(str, x))
    return "+".join(f"{part[0]}:{part[-1] + 1}" for part in parts)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


class Module(nn.Module):
    """A module of these parts whose forward is a function of it and the inputs."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(self, *inputs)


TOKENS = torch.randint(9, (2, 5), generator=torch.Generator().manual_seed(0))
