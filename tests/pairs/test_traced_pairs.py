"""`SpectralMonitor(pairs=trace)`: from what met in a forward pass to pairs of singular vectors."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.pairs.tracing.map import Trace
from torch import Tensor, nn
from torch.nn import functional

import spectral_kernels as sk


def watch(model: nn.Module, *inputs: Tensor, **options: object) -> SpectralMonitor:
    traced = sk.trace(model, *inputs)
    return SpectralMonitor(model, reference=None, pairs=traced, **{"every": 1, **options})  # type: ignore[arg-type]


def keys(monitor: SpectralMonitor) -> set[tuple[str, str]]:
    assert all(pair.origin == "traced" for pair in monitor.pairs)
    return {pair.key for pair in monitor.pairs}


def vectors(A: Tensor) -> tuple[np.ndarray, np.ndarray]:
    U, _, Vh = np.linalg.svd(A.detach().double().numpy(), full_matrices=False)
    return U, Vh


def aligned(U: np.ndarray, Vh: np.ndarray) -> np.ndarray:
    return np.abs(np.diagonal(U.T @ Vh.T))


class Attention(nn.Module):
    """One attention after an embedding, with projections of its own or fused as GPT-NeoX has it."""

    def __init__(self, heads: int, kv: int, *, interleaved: bool = False) -> None:
        super().__init__()
        self.heads, self.kv, self.interleaved = heads, kv, interleaved
        self.table = nn.Embedding(9, 12)
        self.qkv = nn.Linear(12, (heads + 2 * kv) * 3)
        self.o = nn.Linear(heads * 3, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.qkv(self.table(tokens))
        if self.interleaved:
            q, k, v = rows.unflatten(-1, (self.heads, 3, 3)).unbind(-2)
        else:
            sizes = [self.heads * 3, self.kv * 3, self.kv * 3]
            q, k, v = (x.unflatten(-1, (-1, 3)) for x in rows.split(sizes, -1))
        q, k, v = (x.transpose(-3, -2) for x in (q, k, v))
        z = functional.scaled_dot_product_attention(q, k, v, enable_gqa=self.heads != self.kv)
        return self.o(z.transpose(-3, -2).flatten(-2))


TOKENS = torch.arange(8).view(2, 4)


def test_interleaved_heads_meet_in_the_svd_of_each_block() -> None:
    model = Attention(4, 4, interleaved=True).double()
    monitor = watch(model, TOKENS)
    assert keys(monitor) == {
        ("table.weight", "qkv.weight"),
        ("qkv.weight[q]", "qkv.weight[k]"),
        ("qkv.weight[v]", "o.weight"),
        ("qkv.weight[v, by head]", "o.weight[by head]"),
    }
    frame = monitor.step()
    assert frame is not None
    W = model.qkv.weight.unflatten(0, (4, 3, 3))
    heads = [aligned(vectors(q)[0], vectors(k)[0].T) for q, k, _ in W]
    np.testing.assert_allclose(
        frame.alignment["qkv.weight[q]", "qkv.weight[k]"], np.mean(heads, 0), atol=1e-9
    )
    U, (_, Vh) = vectors(W[:, 2].flatten(0, 1))[0], vectors(model.o.weight)
    np.testing.assert_allclose(
        frame.alignment["qkv.weight[v]", "o.weight"], aligned(U, Vh), atol=1e-9
    )
    heads = [
        aligned(vectors(v)[0], vectors(o)[1])
        for v, o in zip(W[:, 2], model.o.weight.split(3, 1), strict=True)
    ]
    np.testing.assert_allclose(
        frame.alignment["qkv.weight[v, by head]", "o.weight[by head]"],
        np.mean(heads, 0),
        atol=1e-9,
    )


def test_planted_alignment_in_every_head_is_one() -> None:
    model = Attention(4, 4).double()
    with torch.no_grad():
        model.qkv.weight[12:24] = model.qkv.weight[:12]
    frame = watch(model, TOKENS).step()
    assert frame is not None
    np.testing.assert_allclose(frame.alignment["qkv.weight[q]", "qkv.weight[k]"], 1, atol=1e-9)


def test_grouped_queries_share_keys_and_values() -> None:
    monitor = watch(Attention(4, 2), TOKENS)
    scores = next(p for p in monitor.pairs if p.key == ("qkv.weight[q]", "qkv.weight[k]"))
    assert [(a.label, b.label) for a, b in scores.meetings] == [
        (f"qkv.weight[q, head {head}]", f"qkv.weight[k, head {head // 2}]") for head in range(4)
    ]
    values = next(p for p in monitor.pairs if "by head" in p.first)
    assert [(a.label, b.label) for a, b in values.meetings] == [
        (f"qkv.weight[v, head {head // 2}]", f"o.weight[head {head}]") for head in range(4)
    ]
    (whole,) = monitor.rejected_pairs
    assert (whole.first, whole.second) == ("qkv.weight[v]", "o.weight")
    assert "share 6 rows" in whole.reason


class Flattened(nn.Module):
    """Convolutions, an LSTM and a linear layer over pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.fc = nn.Linear(6 * 9, 5)
        self.lstm = nn.LSTM(5, 3, bidirectional=True)
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(self.grouped(self.conv(x)).flatten(1))
        return self.out(self.lstm(x)[0])


def test_kernels_pixels_gates_and_directions() -> None:
    model = Flattened().double()
    monitor = watch(model, torch.randn(2, 2, 3, 3).double())
    gate = "[gate g]"
    expected = {
        ("conv.weight[outputs 0:2]", "grouped.weight[group 0]"),
        ("conv.weight[outputs 2:4]", "grouped.weight[group 1]"),
        ("grouped.weight[group 0]", "fc.weight[inputs 4:23:9]"),
        ("grouped.weight[group 1]", "fc.weight[inputs 31:50:9]"),
    }
    for suffix, half in (("", "inputs 0:3"), ("_reverse", "inputs 3:6")):
        ih, hh = f"lstm.weight_ih_l0{suffix}", f"lstm.weight_hh_l0{suffix}"
        expected |= {
            ("fc.weight", ih),
            (f"{ih}{gate}", hh),
            (f"{ih}{gate}", f"out.weight[{half}]"),
            (f"{hh}{gate}", f"out.weight[{half}]"),
        }
    assert keys(monitor) == expected
    frame = monitor.step()
    assert frame is not None
    (U, _), (_, Vh) = vectors(model.grouped.weight[3:].flatten(1)), vectors(model.fc.weight)
    # The middle pixel of each channel, cut out of the vectors of the whole.
    np.testing.assert_allclose(
        frame.alignment["grouped.weight[group 1]", "fc.weight[inputs 31:50:9]"],
        aligned(U[:, :5], Vh[:, 31:50:9])[:3],
        atol=1e-9,
    )


def unet() -> nn.Module:
    """The UNet of Yunis et al. at a quarter of its width: skips are added."""

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            c, e = (16, 32, 64, 128), 128
            self.fourier = nn.Buffer(torch.randn(e // 2))
            self.time_embed = nn.Linear(e, e)
            for i in range(4):
                before, stride = (c[i - 1], 2) if i else (1, 1)
                conv = nn.Conv2d(before, c[i], 3, stride, bias=False)
                self.add_module(f"conv{i + 1}", conv)
                self.add_module(f"dense{i + 1}", nn.Linear(e, c[i]))
                self.add_module(f"gnorm{i + 1}", nn.GroupNorm(4, c[i]))
            for i, more in ((4, 0), (3, 1), (2, 1)):
                conv = nn.ConvTranspose2d(c[i - 1], c[i - 2], 3, 2, output_padding=more, bias=False)
                self.add_module(f"tconv{i}", conv)
                self.add_module(f"dense{9 - i}", nn.Linear(e, c[i - 2]))
                self.add_module(f"tgnorm{i}", nn.GroupNorm(4, c[i - 2]))
            self.tconv1 = nn.ConvTranspose2d(c[0], 1, 3, 1)

        def block(self, conv: str, dense: str, norm: str, h: Tensor, e: Tensor) -> Tensor:
            get = self.get_submodule
            h = get(norm)(get(conv)(h) + get(dense)(e)[..., None, None])
            return h * torch.sigmoid(h)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            angles = t[:, None] * self.fourier * 6.28
            e = self.time_embed(torch.cat([angles.sin(), angles.cos()], -1))
            e = e * torch.sigmoid(e)
            h1 = self.block("conv1", "dense1", "gnorm1", x, e)
            h2 = self.block("conv2", "dense2", "gnorm2", h1, e)
            h3 = self.block("conv3", "dense3", "gnorm3", h2, e)
            h4 = self.block("conv4", "dense4", "gnorm4", h3, e)
            h = self.block("tconv4", "dense5", "tgnorm4", h4, e)
            h = self.block("tconv3", "dense6", "tgnorm3", h + h3, e)
            h = self.block("tconv2", "dense7", "tgnorm2", h + h2, e)
            return self.tconv1(h + h1)

    return UNet()


AUTHORS = (
    "conv1->conv2 conv2->conv3 conv3->conv4 dense1->conv2 dense2->conv3 dense3->conv4 "
    "dense4->tconv4 conv4->tconv4 tconv4->tconv3 tconv3->tconv2 tconv2->tconv1 conv1->tconv1 "
    "dense1->tconv1 conv2->tconv2 dense2->tconv2 conv3->tconv3 dense3->tconv3"
)
# Read in the same forward pass, and left out by the authors.
BESIDE = (
    "dense5->tconv3 dense6->tconv2 dense7->tconv1 time_embed->dense1 time_embed->dense2 "
    "time_embed->dense3 time_embed->dense4 time_embed->dense5 time_embed->dense6 "
    "time_embed->dense7"
)


def test_the_17_pairs_of_the_papers_unet() -> None:
    model = unet()
    monitor = watch(model, torch.randn(1, 1, 28, 28), torch.rand(1))
    found = {f"{a}->{b}".replace(".weight", "") for a, b in keys(monitor)}
    assert len(AUTHORS.split()) == 17
    assert found == {*AUTHORS.split(), *BESIDE.split()}
    frame = monitor.step()
    assert frame is not None
    U, _ = vectors(model.dense3.weight)
    _, Vh = vectors(model.tconv3.weight.transpose(0, 1).flatten(1))
    np.testing.assert_allclose(
        frame.alignment["dense3.weight", "tconv3.weight"],
        aligned(U, Vh.reshape(len(Vh), -1, 9)[:, :, 4])[:100],
        atol=2e-3,
    )


def test_a_saved_trace_serves_a_state_dict() -> None:
    model = Attention(4, 4, interleaved=True)
    traced = Trace.from_dict(json.loads(json.dumps(sk.trace(model, TOKENS).to_dict())))
    monitor = SpectralMonitor(model.state_dict(), every=1, reference=None, pairs=traced)
    assert keys(monitor) == keys(watch(model, TOKENS))


def test_explain_says_what_the_trace_does_not_know() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "unused": nn.Linear(4, 4)})

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, x: Tensor) -> Tensor:
            return self.parts["b"](torch.linalg.matrix_exp(self.parts["a"](x)))

    told = watch(Wrapper(), torch.randn(4, 4)).explain()
    assert "not reached by these inputs: parts.unused.weight" in told
    assert "aten::linalg_matrix_exp: 1 times" in told
    told = watch(Attention(2, 2), TOKENS, exclude="o.weight").explain()
    assert "o.weight is not watched" in told
    assert "(traced)" in told


def test_all_heads_of_a_stack_read_and_write() -> None:
    """The layout of TransformerLens: a matrix for each head in one parameter."""

    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 6)
            for name in ("W_Q", "W_K", "W_V"):
                setattr(self, name, nn.Parameter(torch.randn(2, 6, 3)))
            self.W_O = nn.Parameter(torch.randn(2, 3, 6))
            self.out = nn.Linear(6, 5)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.table(tokens)
            q, k, v = (torch.einsum("btd,hde->bhte", x, w) for w in (self.W_Q, self.W_K, self.W_V))
            z = (q @ k.mT).softmax(-1) @ v
            return self.out(torch.einsum("bhte,hed->btd", z, self.W_O))

    heads = (0, 1)
    assert keys(watch(Stacked(), TOKENS)) == {
        *(("table.weight", f"W_{role}[{head}]") for role in "QKV" for head in heads),
        ("W_Q", "W_K"),
        ("W_V", "W_O"),
        ("W_V[by head]", "W_O[by head]"),
        *((f"W_O[{head}]", "out.weight") for head in heads),
    }


def test_decomposed_layers_are_paired_as_the_dense_ones() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 12)
            self.conv = nn.Conv1d(12, 8, 3)
            self.fc = nn.Linear(8, 12)
            self.attention = nn.TransformerEncoderLayer(12, 2, 10)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.attention(self.fc(self.conv(self.table(tokens).mT).mT))

    dense = watch(Model(), TOKENS)
    model = Model()
    sk.decompose_model(model, {"*": 3})
    monitor = watch(model, TOKENS)
    assert keys(monitor) == keys(dense)
    assert all(not row.first.endswith(("U", "Sigma", "Vh")) for row in monitor.rejected_pairs)


def test_parametrized_weights_keep_their_pairs() -> None:
    norms = nn.utils.parametrizations
    model = nn.Sequential(
        norms.spectral_norm(nn.Linear(4, 6)), nn.ReLU(), norms.weight_norm(nn.Linear(6, 5)),
        nn.utils.spectral_norm(nn.Linear(5, 3)), nn.Linear(3, 2),
    )  # fmt: skip
    layers = ["0.weight", "2.weight", "3.weight", "4.weight"]
    assert keys(watch(model, torch.randn(2, 4))) == set(itertools.pairwise(layers))


def test_a_trace_of_another_model_is_refused() -> None:
    traced = sk.trace(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"of another model; table\.weight: the trace has no"):
        SpectralMonitor(Attention(2, 2), every=1, pairs=traced)
    # One that fits in part says where it does not.
    changed = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5))
    (row,) = SpectralMonitor(changed, every=1, reference=None, pairs=traced).rejected_pairs[:1]
    assert (row.first, row.second) == ("1.weight", "")
    assert "has shape (3, 4)" in row.reason


def test_a_layer_that_feeds_itself_is_a_pair_and_a_tied_side_is_none() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.table = nn.Embedding(9, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.fc(self.fc(self.table(tokens)))

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            return functional.linear(self.table(tokens), self.table.weight)

    assert keys(watch(Twice(), TOKENS)) == {("table.weight", "fc.weight"), ("fc.weight",) * 2}
    monitor = watch(Tied(), TOKENS)
    assert monitor.pairs == ()
    assert ["same weight" in row.reason for row in monitor.rejected_pairs] == [True]
