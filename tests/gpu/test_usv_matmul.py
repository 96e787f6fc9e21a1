"""usv_matmul on a GPU: against float64 at sizes tiles are planned for, the same every time."""

from __future__ import annotations

import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.runtime import dispatch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

# Of the largest entry, above one rounding: two bfloat16 for a float32, or three TF32 products.
FLOOR = 1e-4
SIZES = [(8192, 4096, 4096, 64), (3001, 771, 1030, 33), (70, 3072, 768, 16), (8192, 768, 768, 256)]


@pytest.mark.parametrize("backend", ["triton", None])
@pytest.mark.parametrize("dense", [False, True], ids=["diagonal", "dense"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_against_float64_and_twenty_times(
    sizes, dtype, dense, backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A race between the pieces of the backward kernel would show as another result."""
    if backend is not None:
        monkeypatch.setenv(dispatch.ENVIRONMENT, backend)
    p, m, n, k = sizes
    shapes = [(p, n), (m, k), (k, k) if dense else (k,), (k, n), (m,)]
    given = [torch.randn(s, device="cuda").to(dtype).requires_grad_() for s in shapes]
    grad = torch.randn(p, m, device="cuda").to(dtype)

    def results(leaves: list[torch.Tensor], g: torch.Tensor) -> list[torch.Tensor]:
        y = sk.usv_matmul(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, g)]

    found = results(given, grad)
    want = results([t.detach().double().requires_grad_() for t in given], grad.double())
    for f, w in zip(found, want, strict=True):
        error = (f.double() - w).abs() - 0.501 * torch.finfo(dtype).eps * w.abs()
        assert error.max() <= FLOOR * w.abs().max()
    for _ in range(20):
        assert all(map(torch.equal, results(given, grad), found))
