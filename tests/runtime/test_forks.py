"""Children forked after the parent has computed: OpenMP's threads are not there, and nobody waits.

Each case is a process of its own with two threads, whatever the suite runs with.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.compiled import need_compiled

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60

PROGRAM = """
import functools, os, signal, sys, time
import torch
import spectral_kernels as sk

torch.set_num_threads(2)
torch.manual_seed(0)
large = [torch.randn(300, 300), torch.randn(400, 200), torch.randn(64, 64, dtype=torch.float64)]
whole, leading = sk.SpectrumTracker(), sk.SpectrumTracker(8)
decomposed = torch.randn(300, 150), torch.randn(150, 150), torch.randn(150, 300)
x = torch.randn(2048, 300)
model = torch.nn.Sequential(torch.nn.Linear(300, 400), torch.nn.ReLU(), torch.nn.Linear(400, 300))
spectra = torch.rand(4096, 64).sort(descending=True).values
svds = [sk.SVD(*torch.linalg.svd(A, full_matrices=False)) for A in large]


@functools.cache
def monitor():
    return sk.SpectralMonitor(model, every=1)


CALLS = {
    "svd": lambda: sk.svd(large)[0].S,
    "svdvals": lambda: sk.svdvals(large)[0],
    "svdvals of one": lambda: sk.svdvals(torch.randn(1500, 900)),
    "rsvd": lambda: sk.rsvd(large, 20)[0].S,
    "tracker": lambda: whole.update(large)[0].S,
    "leading tracker": lambda: leading.update(large)[0].S,
    "summary": lambda: sk.spectral_summary(large)[0].effective_rank,
    "summary of many": lambda: sk.summarize_singular_values(spectra).effective_rank,
    "alignment": lambda: sk.alignment_matrix(svds[0].U, svds[0].Vh),
    "diagonals": lambda: sk.alignment_diagonal([svds[0].U] * 9, [svds[0].U.mT] * 9)[0],
    "bounds_from_residuals": lambda: sk.bounds_from_residuals(large[0], *svds[0]),
    "usv_matmul": lambda: sk.usv_matmul(x, *decomposed),
    "svdvals of factors": lambda: sk.svdvals(sk.Decomposed(*decomposed)),
    "recompose": lambda: sk.recompose(*decomposed),
    "monitor": lambda: torch.tensor(monitor().step().matrices["0.weight"].effective_rank),
}


def compute():
    return {name: call() for name, call in CALLS.items()}


# "parent": it has computed with the library. "torch": it has computed, without the library.
compute() if sys.argv[1] == "parent" else (x @ x.T).exp().sum()
child = os.fork()
if child == 0:
    found = compute()
    assert all(bool(x.isfinite().all()) for x in found.values())
    assert torch.get_num_threads() == 1
    assert "forked" in str(sk.capabilities())
    os._exit(0)
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        assert torch.get_num_threads() == 2
        compute()
        sys.exit(os.waitstatus_to_exitcode(status))
    time.sleep(0.01)
os.kill(child, signal.SIGKILL)
sys.exit("the child hangs")
"""

WORKERS = """
import torch
import spectral_kernels as sk

torch.set_num_threads(2)
A = torch.randn(4, 300, 300)
expected = sk.svdvals(A)


class Spectra(torch.utils.data.Dataset):
    def __len__(self):
        return len(A)

    def __getitem__(self, i):
        return sk.svdvals(A[i])


def one(i):
    return sk.svd(A[i]).S


loader = torch.utils.data.DataLoader(
    Spectra(), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=50
)
assert torch.allclose(torch.cat(list(loader)), expected, atol=1e-4)
with torch.multiprocessing.get_context("fork").Pool(2) as pool:
    assert torch.allclose(torch.stack(pool.map_async(one, range(4)).get(50)), expected, atol=1e-4)
"""


def run(program: str, *arguments: str, backend: str = "cpu") -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "SPECTRAL_KERNELS_BACKEND": backend}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=4 * SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("before", ["parent", "torch"])
def test_a_child_computes(before: str, backend: str) -> None:
    if backend == "cpu":
        need_compiled()
    run(PROGRAM, before, str(SECONDS), backend=backend)


def test_workers_compute() -> None:
    need_compiled()
    run(WORKERS)


def test_a_child_that_does_not_compute_keeps_its_threads() -> None:
    run(
        "import os, torch\n"
        "torch.set_num_threads(2)\n"
        "import spectral_kernels\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(torch.get_num_threads())\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2\n"
    )
