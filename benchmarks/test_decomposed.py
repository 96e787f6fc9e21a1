"""Forward and backward pass of a layer kept as U Sigma Vh, against the dense layer it stands for.

The dense layer has 6 p m n operations for p rows, the decomposed one 6 p k (m + n + k) as three
layers; the ratio of the two is part of the input's name, since it is what a decomposition can gain
at most where both run at the same rate. At 1024 x 1024 the last rank, 402, is just below
break-even. All take the gradients of x and of every parameter. The error is the largest of the
result and of all gradients, each over its own largest entry; the dense layer has its own weight,
U Sigma Vh rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

import spectral_kernels as sk
from benchmarks.comparison import Comparison, Contender, parametrize, run_named

# Rows, m, n, k; the first is the size of a small Transformer's layers.
CASES = [
    (2048, 128, 128, 32),
    (256, 512, 512, 64),
    (2048, 512, 512, 128),
    (2048, 1024, 1024, 128),
    (2048, 1024, 1024, 256),
    (2048, 1024, 1024, 402),
    (8192, 1024, 1024, 128),
    (2048, 512, 2048, 128),
    (2048, 2048, 2048, 256),
]
NAMES = ["ours", "F.linear, dense", "three F.linear"]

Layer = Callable[..., Tensor]


def three(x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, bias: Tensor) -> Tensor:
    return linear(linear(linear(x, Vh), Sigma), U, bias)


def step(layer: Layer, leaves: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """Return the result and the gradients of all leaves."""
    y = layer(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, grad)


def compare_layers(p: int, m: int, n: int, k: int) -> Comparison:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    x, bias, grad = normal(p, n), normal(m), normal(p, m)
    U, Sigma, Vh = normal(m, k), normal(k, k), normal(k, n)
    decomposed = [t.requires_grad_() for t in (x, U, Sigma, Vh, bias)]
    with torch.no_grad():
        weight = sk.recompose(U, Sigma, Vh)
    dense = [x, weight.requires_grad_(), bias]

    def contender(name: str, layer: Layer, leaves: list[Tensor], limit: float | None) -> Contender:
        def error(found: tuple[Tensor, ...]) -> float:
            wide = [t.detach().double().requires_grad_() for t in leaves]
            plain = three if len(leaves) == 5 else linear
            pairs = zip(found, step(plain, wide, grad.double()), strict=True)
            return max(float((f - w).abs().max() / w.abs().max()) for f, w in pairs)

        return Contender(name, lambda: step(layer, leaves, grad), error, limit=limit)

    # Sums of thousands of float32 products: 1e-6 is seen, for all three.
    contenders = (
        contender(NAMES[0], sk.usv_matmul, decomposed, 1e-5),
        contender(NAMES[1], linear, dense, None),
        contender(NAMES[2], three, decomposed, None),
    )
    gain = m * n / (k * (m + n + k))
    case = f"{p} rows, {m} x {n}, k = {k}; dense has {gain:.2f} times the operations"
    return Comparison("usv_matmul, forward + backward", case, contenders, "of the largest entry")


@parametrize(compare_layers, CASES, NAMES)
def test_decomposed(benchmark: Any, make: Any, arguments: Any, name: str) -> None:
    run_named(benchmark, make, arguments, name)
