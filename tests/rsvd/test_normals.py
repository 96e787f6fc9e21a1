"""Random numbers by their place: one set of bits, in C++, torch and the reference."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.rsvd import normals as torch_normals
from spectral_kernels.rsvd import truth
from tests.support.compiled import COMPILED, need_compiled

CASES = [(0, 0, 0, 1, 1), (7, 2, 5, 70, 10), (2**63 - 2, 0, 0, 130, 5), (2**32, 1, 0, 64, 12)]


def by_torch(seed: int, matrix: int, entry: int, n: int, columns: int) -> torch.Tensor:
    device = torch.device("cpu")
    return torch_normals.normals(seed, matrix, entry + 1, n, 0, columns, device)[entry]


def compiled(seed: int, matrix: int, entry: int, n: int, columns: int) -> torch.Tensor:
    from spectral_kernels import _C

    out = torch.empty(columns, n)
    _C.normals(seed, matrix, entry, n, columns, out.data_ptr())
    return out.T


def test_the_generator_is_philox() -> None:
    """The known answers of Random123, kat_vectors: philox4x32 of 10 rounds."""
    digits = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    for counter, key, want in (
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, (2**32 - 1,) * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (digits, (0xA4093822, 0x299F31D0), [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ):
        assert truth.philox(np.array(counter), key).tolist() == want


@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_and_reference(case: tuple[int, int, int, int, int]) -> None:
    got = by_torch(*case).double().numpy()
    np.testing.assert_allclose(got, truth.normals(*case), rtol=0, atol=2e-6)


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiled_bits(isa: str, case: tuple[int, int, int, int, int]) -> None:
    need_compiled()
    from spectral_kernels import _C

    before = _C.isa()
    _C.set_isa(isa.partition("-")[2])
    got = compiled(*case)
    _C.set_isa(before)
    assert torch.equal(got, by_torch(*case))


def test_the_distribution_is_normal() -> None:
    """Kolmogorov and Smirnov: sqrt(N) D above 1.95 has a probability of 1e-3; and moments."""
    x = np.sort(truth.normals(3, 0, 0, 4000, 50).ravel())
    phi = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])
    rank = np.arange(1, x.size + 1) / x.size
    distance = max((rank - phi).max(), (phi - rank + 1 / x.size).max())
    assert distance * math.sqrt(x.size) < 1.95
    assert abs(x.mean()) < 4 / math.sqrt(x.size)
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / x.size)
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96 / x.size)


def test_numbers_of_different_places_are_uncorrelated() -> None:
    """Rows, columns, entries of a batch, matrices of a list, seeds."""
    base = truth.normals(11, 0, 0, 400, 8)
    others = [
        truth.normals(12, 0, 0, 400, 8),
        truth.normals(11, 1, 0, 400, 8),
        truth.normals(11, 0, 1, 400, 8),
        np.roll(base, 1, axis=0),
        np.roll(base, 1, axis=1),
    ]
    for other in others:
        assert abs((base * other).mean()) < 4 / math.sqrt(base.size)
    assert np.abs(np.corrcoef(base.T) - np.eye(8)).max() < 5 / math.sqrt(400)


def test_given_columns_do_not_move_the_others() -> None:
    A, start = torch.empty(2, 9, 12), torch.ones(2, 12, 3)
    block = torch_normals.start_block(A, start, 10, seed=5, matrix=1)
    assert torch.equal(block[..., :3], start)
    whole = torch_normals.start_block(A, start[..., :0], 10, seed=5, matrix=1)
    assert torch.equal(block[..., 3:], whole[..., 3:])


@pytest.mark.parametrize("given", [0, 3])
def test_backends_start_from_the_same_block(given: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without iterations values depend on every random number: another block, other values."""
    need_compiled()
    A = torch.randn(2, 60, 50, dtype=torch.float64)
    start = torch.randn(2, 50, given, dtype=torch.float64) if given else None
    found = []
    for name in ("cpu", "torch"):
        monkeypatch.setenv("SPECTRAL_KERNELS_BACKEND", name)
        generator = torch.Generator().manual_seed(3)
        found.append(sk.rsvd(A, 6, power_iters=0, generator=generator, start=start).S)
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)


def test_compiled_kernels_fuse_no_products_into_sums() -> None:
    """What the interpreter cannot show: the kernel that makes random numbers has no fma in it."""
    pytest.importorskip("triton")
    from spectral_kernels.rsvd import triton_factor_kernels
    from tests.support import triton_resources

    (variant,) = (v for v in triton_resources.variants("rsvd") if v.name == "apply and fill")
    assert variant.kernel is triton_factor_kernels.apply
    for fusion, fused in ((False, False), (True, True)):
        options = {**variant.options, "enable_fp_fusion": fusion}
        changed = dataclasses.replace(variant, options=options)
        code = triton_resources.compile_for(changed, 90).asm["sass"]
        # A step of the logarithm: p * t + 0.11676998. The root has fused products of its own.
        steps = [line for line in code.splitlines() if "0.11676998" in line]
        assert steps
        assert any("FFMA" in line for line in steps) is fused
