"""usv_matmul and its gradient on a GPU: ``python -m benchmarks.gpu_decomposed [--out FILE]``.

Every case has the way the plan takes, the fused kernel with several chunks, torch's products at
equal accuracy, torch's products in float32, and the plain chain in the input's own dtype, which
rounds every intermediate result (its error is beside its time). All are checked against float64 on
some rows before they are timed: CUDA events, the L2 cache overwritten before every run, medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import spectral_kernels as sk
from spectral_kernels.decomposed import model, plan, torch_backend

# p, m, n, k
CASES = [
    (rows, m, n, k)
    for m, n in ((768, 768), (3072, 768), (4096, 4096), (4096, 11008))
    for rows in (128, 1024, 8192)
    for k in (16, 64, 128)
]
CHUNKS = (256, 512, 1024, 2048)
# Ours may err by one rounding of the result and 1e-4 of the largest entry.
FLOOR = 1e-4
RUNS = 30

Run = Callable[[], Any]


def chain(x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor) -> Tensor:
    """The product as one writes it in torch, every result rounded to the dtype."""
    return ((x @ Vh.mT) @ Sigma.mT) @ U.mT


def float32_products(x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor) -> Tensor:
    return torch_backend.usv_matmul(x, U, Sigma, Vh, None)


def seconds(run: Run, device: str) -> float:
    """Return the median time of one run that finds nothing in the cache."""
    if device == "cpu":
        times = []
        for _ in range(3):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        return statistics.median(times)
    # Takes long enough for Python to issue all launches of a run meanwhile, so that the events
    # time the device and not Python.
    flush = torch.empty(2 * 2**30, dtype=torch.uint8, device=device)
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(RUNS)]
    for _ in range(3):
        run()
    for begin, end in marks:
        flush.zero_()
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in marks) * 1e-3


def contenders(tiles: plan.Tiles) -> dict[str, tuple[Callable[..., Tensor], Any]]:
    """Return name -> product, and tiles of the backward kernel ("plan": the plan's own)."""
    found: dict[str, tuple[Callable[..., Tensor], Any]] = {
        "ours": (sk.usv_matmul, "plan"),
        "torch's products at equal accuracy": (sk.usv_matmul, None),
        "torch's products in float32": (float32_products, "plan"),
        "torch's products, each rounded": (chain, "plan"),
    }
    for chunk in CHUNKS:
        if chunk % tiles["BLOCK_P"] == 0:
            found[f"fused, chunks of {chunk} rows"] = (sk.usv_matmul, tiles | {"CHUNK": chunk})
    return found


def rows_of(
    case: tuple[int, int, int, int], dtype: torch.dtype, device: str
) -> list[dict[str, Any]]:
    """Time every contender of one case, forward and backward."""
    p, m, n, k = case
    torch.manual_seed(0)
    shapes = ((p, n), (m, k), (k, k), (k, n))
    given = [torch.randn(s, device=device).to(dtype).requires_grad_() for s in shapes]
    grad = torch.randn(p, m, device=device).to(dtype)
    exact = [t.detach().double().requires_grad_() for t in given]
    product = chain(*exact)
    want = [product.detach(), *torch.autograd.grad(product, exact, grad.double())]
    problem = model.Problem(
        1, p, m, n, k, grad.element_size(), split=dtype == torch.bfloat16, hopper=True
    )
    found = []
    for name, (way, tiles) in contenders(plan.backward_tiles(problem)).items():
        if isinstance(tiles, dict) and problem.width > problem.widest:
            continue
        with using(tiles):
            y = way(*given)
            results = [y, *torch.autograd.grad(y, given, grad, retain_graph=True)]
            error = max(excess(r, w) for r, w in zip(results, want, strict=True))
            if way is sk.usv_matmul and not error <= FLOOR:
                sys.exit(f"{name}, {case}, {dtype}: errs by {error}, limit {FLOOR}")
            with torch.no_grad():
                forward = seconds(lambda: way(*given), device)  # noqa: B023
            backward = seconds(
                lambda: torch.autograd.grad(y, given, grad, retain_graph=True),  # noqa: B023
                device,
            )
        found.append(
            {
                "case": f"{p} rows, {m} x {n}, rank {k}, {dtype}",
                "contender": name,
                "forward_ms": forward * 1e3,
                "backward_ms": backward * 1e3,
                "error_above_one_rounding": error,
            }
        )
    return found


def using(tiles: Any) -> Any:
    """Return the context in which the kernels take these tiles, or None of them."""
    stack = ExitStack()
    if tiles is None:
        stack.enter_context(plan.overriding("forward", None))
    if tiles != "plan":
        stack.enter_context(plan.overriding("backward", tiles))
    return stack


def excess(found: Tensor, want: Tensor) -> float:
    """Return the largest error above one rounding, as a share of the largest entry."""
    once = 0.501 * torch.finfo(found.dtype).eps * want.abs()
    found = found.detach()
    return float(((found.double() - want).abs() - once).max() / want.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--case", type=int, nargs=4, metavar=("P", "M", "N", "K"))
    options = parser.parse_args()
    cases = [tuple(options.case)] if options.case else CASES
    rows = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for case in cases:
            for row in rows_of(case, dtype, options.device):
                print(json.dumps(row), flush=True)
                rows.append(row)
    if options.out:
        options.out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
