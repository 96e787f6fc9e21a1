"""x (U Sigma Vh)^T and its gradients, beside torch's products at equal and at lower accuracy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

import spectral_kernels as sk
from benchmarks.comparison import Comparison, Contender
from benchmarks.gpu.case import OURS, Case, Target, times_faster
from benchmarks.gpu.floors import Work
from spectral_kernels.factored import cost, tiling, torch_backend

# Rows, m = n, rank.
GRID = list(itertools.product((512, 8192), (1024, 4096), (16, 64, 128)))
LARGE = (8192, 4096, 64)
CHUNKS = (256, 512, 1024, 2048)
EQUAL = "torch's products, equal accuracy"
SINGLE = "torch's products in float32"
ROUNDED = "torch's products, each rounded"
# Above one rounding of the result, relative to its largest entry: sums over thousands of rows.
_LIMIT = 1e-4

Product = Callable[..., Tensor]
Setting = Callable[[], AbstractContextManager[None]]


def cases(device: str, *, tiny: bool) -> Iterator[Case]:
    """Return all cases of this file."""
    dtypes = [torch.float32] if tiny else [torch.bfloat16, torch.float16, torch.float32]
    for dtype in dtypes:
        for shape in [(48, 32, 16)] if tiny else GRID:
            for direction in ("forward", "backward"):
                yield _Products(shape, dtype, device).case(direction)


class _Products:
    """One set of factors, and all ways to multiply with them."""

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> None:
        p, n, k = self._shape = shape
        self._dtype, self._device = dtype, device
        generator = torch.Generator().manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator).to(device, dtype).requires_grad_()

        self._given = [normal(p, n), normal(n, k), normal(k, k), normal(k, n)]
        self._grad = normal(p, n).detach()
        wide = [t.detach().double().requires_grad_() for t in self._given]
        product = _chain(*wide)
        self._exact = {
            "forward": [product.detach()],
            "backward": torch.autograd.grad(product, wide, self._grad.double()),
        }

    def case(self, direction: cost.Direction) -> Case:
        """Return the comparison of all ways."""
        p, n, k = self._shape
        contenders = tuple(self._contender(direction, *way) for way in self._ways(direction))
        told = str(self._dtype).removeprefix("torch.")
        name = f"{p} x {n}, rank {k}, {told}"
        comparison = Comparison(f"usv_matmul, {direction}", name, contenders, "of the largest")
        return Case(comparison, self._work(direction), self._targets(direction, name))

    def _ways(self, direction: cost.Direction) -> Iterator[tuple[str, Product, Setting]]:
        yield OURS, sk.usv_matmul, nullcontext
        yield EQUAL, sk.usv_matmul, lambda: tiling.overriding(direction, None)
        yield SINGLE, _in_float32, nullcontext
        yield ROUNDED, _chain, nullcontext
        if self._shape == LARGE and direction == "backward":
            tiles = tiling.backward_tiles(self._problem)
            for chunk in CHUNKS:
                if chunk % tiles["BLOCK_P"] == 0:
                    yield f"fused, chunks of {chunk} rows", sk.usv_matmul, _chunked(tiles, chunk)

    @property
    def _problem(self) -> cost.Problem:
        p, n, k = self._shape
        split = self._dtype == torch.bfloat16
        return cost.Problem(1, p, n, n, k, self._dtype.itemsize, split=split, hopper=True)

    def _contender(self, direction: str, name: str, way: Product, setting: Setting) -> Contender:
        if direction == "forward":

            def run() -> Any:
                with torch.no_grad(), setting():
                    return [way(*self._given)]

        else:
            # Made once, when the contender is run first: the forward pass is not timed.
            made: list[Tensor] = []

            def run() -> Any:
                with setting():
                    if not made:
                        made.append(way(*self._given))
                    return torch.autograd.grad(made[0], self._given, self._grad, retain_graph=True)

        limit = _LIMIT if name == OURS else None
        return Contender(name, run, lambda found: self._error(direction, found), limit)

    def _error(self, direction: str, found: list[Tensor]) -> float:
        """Largest error above one rounding, relative to the largest entry."""
        eps = torch.finfo(self._dtype).eps
        worst = 0.0
        for ours, exact in zip(found, self._exact[direction], strict=True):
            above = (ours.detach().double() - exact).abs() - 0.501 * eps * exact.abs()
            worst = max(worst, float(above.max() / exact.abs().max()))
        return worst

    def _work(self, direction: str) -> Work:
        p, n, k = self._shape
        factors = 2 * n * k + k * k
        once = 2 * p * n + factors
        # Backward: x, g and the factors in, dx and the gradients of the factors out.
        moved = once if direction == "forward" else 3 * p * n + 2 * factors
        flops = 2.0 * p * (2 * n * k + k * k) * (1 if direction == "forward" else 3)
        rate = "fp32" if self._dtype == torch.float32 else "bf16"
        return Work(float(self._dtype.itemsize * moved), flops, rate)

    def _targets(self, direction: str, name: str) -> tuple[Target, ...]:
        told = f"usv_matmul {direction} never slower than torch's products: {name}"
        targets = [times_faster(told, EQUAL, 1.0)]
        if direction == "backward" and self._shape == LARGE and self._dtype == torch.bfloat16:
            told = "usv_matmul backward at least 1.2 times: 8192 rows, 4096², rank 64"
            targets.append(times_faster(told, EQUAL, 1.2))
        return tuple(targets)


def _chunked(tiles: cost.Tiles, chunk: int) -> Setting:
    return lambda: tiling.overriding("backward", tiles | {"CHUNK": chunk})


def _chain(x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor) -> Tensor:
    """The product as one writes it in torch: two large ones, and one with the core."""
    return ((x @ Vh.mT) @ Sigma.mT) @ U.mT


def _in_float32(x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor) -> Tensor:
    return torch_backend.usv_matmul(x, U, Sigma, Vh, None)
