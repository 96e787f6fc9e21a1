"""Every kernel once, on small odd shapes: what a sanitizer can watch in a minute.

``compute-sanitizer --tool memcheck python -m benchmarks.gpu.small``. Each backend of a GPU is
forced in turn; the inputs have NaN, zero columns and sizes that no tile divides.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

import spectral_kernels as sk
from spectral_kernels.runtime import dispatch

SHAPES = [(1, 1), (5, 3), (17, 31), (33, 33), (40, 90), (130, 70)]


def main() -> None:
    """Run all operations on each backend that is there."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for row in dispatch.BACKENDS:
        reason = dispatch.refusal(row, device)
        if reason is None:
            os.environ[dispatch.ENVIRONMENT] = row.name
            _operations(device)
        print(f"{row.name}: {reason or 'ran'}", flush=True)


def _operations(device: str) -> None:
    torch.manual_seed(0)
    matrices = [torch.randn(2, m, n, device=device) for m, n in SHAPES]
    matrices[2][0, 3, 2] = float("nan")
    matrices[3][:, :, 5] = 0.0
    svds = sk.svd(matrices)
    sk.spectral_summary(matrices)
    sk.svdvals([A.half() for A in matrices] + [A.double() for A in matrices])
    sk.alignment_diagonal([x.U for x in svds], [x.U.mT for x in svds])
    sk.singular_vector_agreement(svds, svds)
    sk.rsvd(matrices[3:], 5)
    for k in (None, 4):
        tracker = sk.SpectrumTracker(k, reuse_buffers=k is None)
        for _ in range(3):
            tracker.update(matrices[3:])
    for dtype in (torch.float32, torch.bfloat16):
        _usv(device, dtype)
    monitor = sk.SpectralMonitor(torch.nn.Sequential(*_layers()).to(device), every=1)
    for _ in range(3):
        monitor.step()
    monitor.close()
    if device == "cuda":
        torch.cuda.synchronize()


def _layers() -> list[torch.nn.Module]:
    return [torch.nn.Linear(20, 33), torch.nn.ReLU(), torch.nn.Linear(33, 7)]


def _usv(device: str, dtype: torch.dtype) -> None:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype).requires_grad_()

    for core in ((9,), (9, 9)):
        y = sk.usv_matmul(normal(37, 50), normal(41, 9), normal(*core), normal(9, 50), normal(41))
        y.float().square().sum().backward()


if __name__ == "__main__":
    main()
