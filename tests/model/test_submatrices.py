"""Parts of matrices: what they are, and how a monitor measures them beside the matrices."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.measurement import METHODS
from spectral_monitor.model.matrix import Matrix, MatrixView
from spectral_monitor.model.submatrices import stacked, submatrix
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.step.frame import SpectralFrame
from torch import Tensor, nn

import spectral_kernels as sk
from spectral_kernels.svd.op import svdvals_list
from tests.support.decomposed_models import product

D, HEADS = 16, 4


def due(frame: SpectralFrame | None) -> SpectralFrame:
    assert frame is not None
    return frame


def matrix(A: Tensor, **source: Any) -> Matrix:
    view = source.get("view")
    m, n = (A if view is None else view(A)).shape
    return Matrix("w", "w", (m, n), MatrixView("linear", **source), (), lambda: A)


class Block(nn.Module):
    """Attention whose singular values are apart, so that vectors are well defined."""

    def __init__(self, d: int = D, heads: int = HEADS) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, d)
        self.attn = nn.MultiheadAttention(d, heads)
        self.up = nn.Linear(d, 24)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                spread(parameter, generator, heads if parameter.shape[0] == 3 * d else 1)


def spread(parameter: Tensor, generator: torch.Generator, heads: int) -> None:
    """Fill with blocks of rows whose values fall by a fifth each."""
    blocks = parameter.detach().tensor_split(3 * heads if heads > 1 else 1)
    for block in blocks:
        U, _, Vh = torch.linalg.svd(torch.randn(block.shape, generator=generator))
        r = min(block.shape)
        block.copy_((U[:, :r] * 0.8 ** torch.arange(r)) @ Vh[:r])


def qk(model: Block) -> np.ndarray:
    """The mean over heads of |U_q^T U_k|, by NumPy."""
    d, heads = model.attn.embed_dim, model.attn.num_heads
    W = model.attn.in_proj_weight.detach().double().numpy()
    Q, K = (W[i * d : (i + 1) * d].reshape(heads, d // heads, d) for i in (0, 1))
    U, other = np.linalg.svd(Q)[0], np.linalg.svd(K)[0]
    return np.abs(np.diagonal(U.swapaxes(1, 2) @ other, axis1=1, axis2=2)).mean(axis=0)


QK = ("attn.in_proj_weight[q]", "attn.in_proj_weight[k]")


def test_a_part_is_a_view_of_what_lies_together() -> None:
    A = torch.arange(24.0).reshape(4, 6)
    part = submatrix(matrix(A), "x", rows=[(1, 2), (2, 3)], columns=[(2, 5)])
    assert (part.name, part.whole, part.shape) == ("w[x]", "w", (2, 3))
    assert torch.equal(part.view(), A[1:3, 2:5])
    assert part.view().data_ptr() == A[1:3, 2:5].data_ptr()
    apart = submatrix(matrix(A), "x", rows=[(2, 3), (0, 1)])
    assert torch.equal(apart.view(), A[[2, 0]])
    inner = submatrix(part, "y", columns=[(1, 2)])
    assert (inner.name, inner.whole) == ("w[x][y]", "w")
    assert torch.equal(inner.view(), A[1:3, 3:4])


def test_a_part_of_a_view_is_of_what_the_view_gives() -> None:
    A = torch.arange(24.0).reshape(6, 4)
    part = submatrix(matrix(A, view=lambda t: t.mT), "x", rows=[(1, 3)])
    assert torch.equal(part.view(), A.mT[1:3])


@pytest.mark.parametrize("ranges", [[(0, 5)], [(2, 2)], [(-1, 2)], []])
def test_ranges_beyond_the_matrix(ranges: list[tuple[int, int]]) -> None:
    for side, length in (("rows", 4), ("columns", 4)):
        with pytest.raises(ValueError, match=rf"{side} of w\[x\]: expected"):
            submatrix(matrix(torch.zeros(4, length)), "x", **{side: ranges})  # type: ignore[arg-type]


def test_matrices_of_one_parameter_are_stacked() -> None:
    A = torch.arange(24.0).reshape(2, 3, 4)
    heads = [
        Matrix(f"w[{h}]", "w", (3, 4), MatrixView("linear", lambda t, h=h: t[h]), (), lambda: A)
        for h in (0, 1)
    ]
    assert torch.equal(stacked(heads, "w").view(), A.flatten(0, 1))
    assert torch.equal(stacked(heads, "w", columns=True).view(), torch.cat([A[0], A[1]], dim=1))
    other = Matrix("v", "v", (3, 4), MatrixView("linear"), (), lambda: A[0])
    with pytest.raises(ValueError, match=r"expected matrices of one parameter.*w\[0\] \(3, 4\)"):
        stacked([heads[0], other], "w")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_measures_parts_without_rows(method: Any) -> None:
    model = Block()
    options = {"k": 12} if method == "randomized" else {}
    watch = SpectralMonitor(model, method=method, every=1, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        frame = due(watch.step())
        np.testing.assert_allclose(frame.alignment[QK], qk(model), atol=2e-3)
        assert list(frame.matrices) == [m.name for m in watch.matrices]
        assert not any(part.name in frame.agreement for part in watch.parts)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1e-3 * torch.randn(parameter.shape, generator=generator)
    # Queries, keys and values of every head, all values, and the columns that heads write to.
    assert len(watch.parts) == 3 * HEADS + 1 + HEADS
    assert {part.whole for part in watch.parts} == {"attn.in_proj_weight", "attn.out_proj.weight"}


def test_large_parts_have_no_values_from_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    solved: list[int] = []
    monkeypatch.setattr(
        "spectral_monitor.step.tracked_solver.svdvals_list",
        lambda matrices: solved.append(len(matrices)) or svdvals_list(matrices),
    )
    model = Block(400, 2)
    watch = SpectralMonitor(model, pairs=[("attn.in_proj_weight", "attn.out_proj.weight")], every=1)
    exact = SpectralMonitor(model, method="exact", reference=None, every=1)
    whole = ("attn.in_proj_weight[v]", "attn.out_proj.weight")
    frame, expected = due(watch.step()), due(exact.step())
    assert [part.name for part in watch.parts if min(part.shape) > 384] == [whole[0]]
    # Of the two projections alone.
    assert set(solved) == {2}
    top = slice(0, 10)
    np.testing.assert_allclose(
        frame.alignment[whole][top], expected.alignment[whole][top], atol=1e-2
    )


def test_a_few_triplets_of_parts() -> None:
    model = Block()
    frame = due(SpectralMonitor(model, every=1, k=3).step())
    np.testing.assert_allclose(frame.alignment[QK], qk(model)[:3], atol=2e-3)
    assert all(len(row.singular_values) == 3 for row in frame.matrices.values())


def test_vectors_of_two_dtypes_meet() -> None:
    model = Block()
    model.attn.out_proj.double()
    frame = due(SpectralMonitor(model, every=1, method="exact").step())
    per_head = ("attn.in_proj_weight[v, by head]", "attn.out_proj.weight[by head]")
    W, W_o = (
        w.detach().double().numpy() for w in (model.attn.in_proj_weight, model.attn.out_proj.weight)
    )
    size = D // HEADS
    expected = [
        np.abs(np.diagonal(
            np.linalg.svd(W[2 * D + i : 2 * D + i + size])[0].T
            @ np.linalg.svd(W_o[:, i : i + size], full_matrices=False)[2].T
        ))
        for i in range(0, D, size)
    ]  # fmt: skip
    np.testing.assert_allclose(frame.alignment[per_head], np.mean(expected, axis=0), atol=1e-4)
    np.testing.assert_allclose(frame.alignment[QK], qk(model), atol=1e-4)


def test_a_block_under_watch_is_not_measured_twice() -> None:
    block = "attn.in_proj_weight[q, head 1]"
    watch = SpectralMonitor(Block(), include=["*.weight", "*in_proj_weight", block], every=1)
    assert block in due(watch.step()).matrices
    assert block not in [part.name for part in watch.parts]
    assert QK in due(watch.step()).alignment


def test_parts_are_told_and_their_memory_counts() -> None:
    model = Block()
    watch = SpectralMonitor(model, every=1)
    told = watch.explain(full=True)
    assert f"{len(watch.parts)} parts decomposed for these pairs alone:" in told
    assert "attn.in_proj_weight[q, head 2]  4 x 16  of attn.in_proj_weight" in " ".join(
        told.split(" ")
    ).replace("   ", "  ")
    kept = watch.memory().kept["parts for alignment"]
    assert set(kept) == {"attn.in_proj_weight", "attn.out_proj.weight"}
    without = SpectralMonitor(model, every=1, pairs=None)
    assert without.parts == ()
    assert watch.memory().total == without.memory().total + sum(kept.values())
    assert "parts for alignment" in told


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_same_bit_by_bit(method: Any) -> None:
    model = Block()
    options = {"k": 3} if method == "randomized" else {}

    def move(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1e-3 * torch.randn(parameter.shape, generator=generator)

    watch = SpectralMonitor(model, method=method, every=1, **options)
    watch.step()
    state = copy.deepcopy(watch.state_dict())
    resumed = SpectralMonitor(model, method=method, every=1, **options)
    resumed.load_state_dict(state)
    others = SpectralMonitor(model, method=method, every=1, pairs=None, **options)
    others.load_state_dict(state)
    move(1)
    a, b, c = (due(w.step()) for w in (watch, resumed, others))
    for key, diagonal in a.alignment.items():
        assert np.array_equal(diagonal, b.alignment[key]), key
    # Without these parts the vectors start anew; the numbers are those of the same weights.
    for name, row in a.matrices.items():
        np.testing.assert_allclose(c.matrices[name].singular_values, row.singular_values, atol=1e-3)


def test_parts_of_a_decomposed_layer_follow_it() -> None:
    torch.manual_seed(0)
    model = Block()
    sk.decompose_model(model, {"attn": 6})
    watch = SpectralMonitor(model, method="exact", every=1)
    dense = copy.deepcopy(Block())
    with torch.no_grad():
        dense.attn.in_proj_weight.copy_(product(model, "attn.in_proj"))
    np.testing.assert_allclose(due(watch.step()).alignment[QK], qk(dense), atol=1e-3)
    # Other factors in their place: a row with its reason, and an alignment without numbers.
    layer = model.attn.in_proj
    layer.U = nn.Parameter(layer.U.detach()[: 2 * D])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = due(watch.step())
    assert "its factors were" in str(caught[0].message)
    assert not frame.matrices["attn.in_proj_weight"].finite
    assert np.isnan(frame.alignment[QK]).all()


def test_a_copied_monitor_has_parts_of_the_copied_model() -> None:
    model = Block()
    sk.decompose_model(model, {"attn": 6})
    (part, *_) = SpectralMonitor(model, every=1).parts
    twin, copied = copy.deepcopy((model, part.get))
    with torch.no_grad():
        twin.attn.in_proj.U.zero_()
    kept, own = copied(), part.get()
    assert isinstance(kept, sk.Decomposed)
    assert isinstance(own, sk.Decomposed)
    assert float(kept.U.detach().abs().max()) == 0
    assert float(own.U.detach().abs().max()) > 0
