"""`sk.trace`: which outputs of which weight meet which inputs of which, exactly."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from spectral_monitor.pairs.tracing.map import Trace
from torch import Tensor, nn
from torch.nn import functional

import spectral_kernels as sk
from tests.support.traced import Module, as_line, drawn, parameter

TOKENS = torch.randint(9, (2, 5), generator=torch.Generator().manual_seed(0))


def test_a_chain_with_norms_and_activations() -> None:
    model = nn.Sequential(
        nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Dropout(), nn.Linear(6, 5), nn.Softmax(-1),
        nn.Linear(5, 3),
    )  # fmt: skip
    assert drawn(model, torch.randn(2, 4)) == {
        "feeds: 0.weight[0:6, 0] -> 4.weight[0, 0:6]",
        "feeds: 4.weight[0:5, 0] -> 6.weight[0, 0:5]",
    }


def test_tied_tables_positions_and_both_addends() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        h = m.tok(x) + m.pos(torch.arange(x.shape[1])) + m.learned
        return functional.linear(m.fc(h), m.tok.weight)

    model = Module(
        forward, tok=nn.Embedding(9, 4), pos=nn.Embedding(5, 4), learned=parameter(1, 5, 4),
        fc=nn.Linear(4, 4),
    )  # fmt: skip
    assert drawn(model, TOKENS) == {
        "feeds: tok.weight[0, 0:4] -> fc.weight[0, 0:4]",
        "feeds: pos.weight[0, 0:4] -> fc.weight[0, 0:4]",
        "feeds: learned[0, 0, 0:4] -> fc.weight[0, 0:4]",
        "feeds: fc.weight[0:4, 0] -> tok.weight[0, 0:4]",
    }


def test_residual_additions_keep_the_nearest_writers() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        h = m.a(x)
        h = h + m.b2(functional.relu(m.b1(h)))
        # Two branches of one input, in parallel.
        h = h + m.c(h) + m.d(h)
        return m.out(h)

    layers = {name: nn.Linear(4, 4) for name in ("a", "b1", "b2", "c", "d", "out")}
    model = Module(forward, **layers)
    w = {(a, b): f"feeds: {a}.weight[0:4, 0] -> {b}.weight[0, 0:4]" for a in layers for b in layers}
    nearest = {w[pair] for pair in [
        ("a", "b1"), ("b1", "b2"), ("b2", "c"), ("b2", "d"), ("c", "out"), ("d", "out"),
    ]}  # fmt: skip
    assert drawn(model, torch.randn(2, 4)) == nearest
    stream = {w[pair] for pair in [("a", "c"), ("a", "d"), ("a", "out"), ("b2", "out")]}
    assert drawn(model, torch.randn(2, 4), stream=True) == nearest | stream


def test_gates_multiply_and_both_feed() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        gate, up = m.fused(x).chunk(2, -1)
        h = m.down(functional.silu(gate) * up)
        return m.out(functional.glu(m.glu(h), -1))

    model = Module(
        forward, fused=nn.Linear(4, 12), down=nn.Linear(6, 5), glu=nn.Linear(5, 8),
        out=nn.Linear(4, 3),
    )  # fmt: skip
    assert drawn(model, torch.randn(2, 4)) == {
        "feeds: fused.weight[0:6, 0] -> down.weight[0, 0:6]",
        "feeds: fused.weight[6:12, 0] -> down.weight[0, 0:6]",
        "feeds: down.weight[0:5, 0] -> glu.weight[0, 0:5]",
        "feeds: glu.weight[0:4, 0] -> out.weight[0, 0:4]",
        "feeds: glu.weight[4:8, 0] -> out.weight[0, 0:4]",
    }


@pytest.mark.parametrize("batch_first", [True, False])
def test_fused_attention_of_torch(batch_first: bool) -> None:
    model = nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first)
    a = "self_attn"
    assert drawn(model, torch.randn(2, 5, 8)) == {
        f"scores: {a}.in_proj_weight[0:4, 0] -> {a}.in_proj_weight[8:12, 0]",
        f"scores: {a}.in_proj_weight[4:8, 0] -> {a}.in_proj_weight[12:16, 0]",
        f"values: {a}.in_proj_weight[16:24, 0] -> {a}.out_proj.weight[0, 0:8]",
        f"feeds: {a}.out_proj.weight[0:8, 0] -> linear1.weight[0, 0:8]",
        "feeds: linear1.weight[0:12, 0] -> linear2.weight[0, 0:12]",
    }


def test_learned_queries_read_another_sequence() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        x = m.inward(x)
        return m.attn(m.queries.expand(len(x), -1, -1), x, x)[0]

    attn = nn.MultiheadAttention(8, 2, batch_first=True)
    model = Module(forward, inward=nn.Linear(3, 8), queries=parameter(6, 8), attn=attn)
    found = drawn(model, torch.randn(2, 5, 3))
    assert {row for row in found if row.startswith("feeds")} == {
        "feeds: queries[0, 0:8] -> attn.in_proj_weight[0, 0:8]",
        "feeds: inward.weight[0:8, 0] -> attn.in_proj_weight[8, 0:8]",
    }
    assert len(found) == 5


def test_grouped_queries_in_falcons_layout() -> None:
    heads, kv, size = 4, 2, 3

    def forward(m: Module, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        qkv = m.qkv(x).view(n, t, kv, heads // kv + 2, size)
        q = qkv[..., :-2, :].flatten(2, 3).transpose(1, 2)
        k, v = (qkv[..., i, :].repeat_interleave(heads // kv, 2).transpose(1, 2) for i in (-2, -1))
        h = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return m.dense(h.transpose(1, 2).reshape(n, t, -1))

    model = Module(forward, qkv=nn.Linear(12, (heads + 2 * kv) * size), dense=nn.Linear(12, 12))
    rows = "9:12+9:12+21:24+21:24"
    assert drawn(model, torch.randn(2, 5, 12)) == {
        "scores: qkv.weight[0:3, 0] -> qkv.weight[6:9, 0]",
        "scores: qkv.weight[3:6, 0] -> qkv.weight[6:9, 0]",
        "scores: qkv.weight[12:15, 0] -> qkv.weight[18:21, 0]",
        "scores: qkv.weight[15:18, 0] -> qkv.weight[18:21, 0]",
        f"values: qkv.weight[{rows}, 0] -> dense.weight[0, 0:12]",
    }


def test_rotary_positions_keep_the_rows() -> None:
    def rotated(x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[-2])[:, None] * torch.ones(x.shape[-1])
        half = x.shape[-1] // 2
        return x * angles.cos() + torch.cat([-x[..., half:], x[..., :half]], -1) * angles.sin()

    def turned(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
        return torch.view_as_real(pairs * torch.ones_like(pairs)).flatten(-2)

    def forward(m: Module, x: Tensor) -> Tensor:
        q, k = rotated(m.q(x)), rotated(m.k(x))
        scores = (q @ k.mT).softmax(-1) + (turned(m.r(x)) @ turned(m.s(x)).mT).softmax(-1)
        return m.o(scores @ m.v(x))

    model = Module(forward, **{name: nn.Linear(6, 6) for name in "qkrsvo"})
    assert drawn(model, torch.randn(2, 5, 6)) == {
        "scores: q.weight[0:6, 0] -> k.weight[0:6, 0]",
        "scores: r.weight[0:6, 0] -> s.weight[0:6, 0]",
        "values: v.weight[0:6, 0] -> o.weight[0, 0:6]",
    }


def test_inputs_times_weight_with_a_matrix_for_each_head() -> None:
    """The layout of TransformerLens: x @ W, and W_Q (heads, d, d_head)."""

    def forward(m: Module, tokens: Tensor) -> Tensor:
        x = m.W_E[tokens] + m.W_pos[: tokens.shape[1]]
        q, k, v = (
            torch.einsum("btd,hde->bthe", x, w) + b
            for w, b in ((m.W_Q, m.b_Q), (m.W_K, m.b_K), (m.W_V, m.b_V))
        )
        scores = torch.einsum("bqhe,bkhe->bhqk", q, k).softmax(-1)
        z = torch.einsum("bhqk,bkhe->bqhe", scores, v)
        x = x + torch.einsum("bqhe,hed->bqd", z, m.W_O)
        return functional.relu(x @ m.W_in) @ m.W_out

    shapes = dict.fromkeys(("W_Q", "W_K", "W_V"), (2, 6, 3))
    shapes |= dict.fromkeys(("b_Q", "b_K", "b_V"), (2, 3))
    shapes |= {"W_E": (9, 6), "W_pos": (7, 6), "W_O": (2, 3, 6), "W_in": (6, 8), "W_out": (8, 6)}
    model = Module(forward, **{name: parameter(*shape) for name, shape in shapes.items()})
    found = {row for row in drawn(model, TOKENS) if "b_" not in row}
    assert found == {
        *(f"feeds: {table}[0, 0:6] -> W_{role}[0, 0:6, 0]"
          for table in ("W_E", "W_pos") for role in "QKV"),
        *(f"scores: W_Q[{head}, 0, 0:3] -> W_K[{head}, 0, 0:3]" for head in (0, 1)),
        "values: W_V[000111, 0, 0:3+0:3] -> W_O[000111, 0:3+0:3, 0]",
        "feeds: W_O[0, 0, 0:6] -> W_in[0:6, 0]",
        "feeds: W_in[0, 0:8] -> W_out[0:8, 0]",
    }  # fmt: skip


def test_low_rank_adapters_beside_a_weight_and_merged_into_it() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        h = m.first(x)
        h = m.base(h) + m.B(m.A(h)) * 2
        return functional.linear(h, m.merged.weight + m.low @ m.up)

    model = Module(
        forward, first=nn.Linear(4, 6), base=nn.Linear(6, 5), A=nn.Linear(6, 2), B=nn.Linear(2, 5),
        merged=nn.Linear(5, 3), low=parameter(3, 2), up=parameter(2, 5),
    )  # fmt: skip
    assert drawn(model, torch.randn(2, 4)) == {
        "feeds: first.weight[0:6, 0] -> base.weight[0, 0:6]",
        "feeds: first.weight[0:6, 0] -> A.weight[0, 0:6]",
        "feeds: A.weight[0:2, 0] -> B.weight[0, 0:2]",
        "feeds: base.weight[0:5, 0] -> merged.weight[0, 0:5]",
        "feeds: B.weight[0:5, 0] -> merged.weight[0, 0:5]",
        "feeds: up[0:2, 0] -> low[0, 0:2]",
    }


def test_convolutions_groups_squeeze_and_excite() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        x = functional.relu(m.norm(m.depthwise(m.stem(x))))
        x = x * torch.sigmoid(m.se2(functional.relu(m.se1(x.mean((2, 3), keepdim=True)))))
        x = m.grouped(x)
        return m.fc(functional.adaptive_avg_pool2d(x, 2).flatten(1))

    model = Module(
        forward, stem=nn.Conv2d(3, 6, 3), depthwise=nn.Conv2d(6, 6, 3, groups=6),
        norm=nn.BatchNorm2d(6), se1=nn.Conv2d(6, 2, 1), se2=nn.Conv2d(2, 6, 1),
        grouped=nn.Conv2d(6, 4, 3, groups=2), fc=nn.Linear(16, 3),
    )  # fmt: skip
    found = drawn(model, torch.randn(2, 3, 12, 12))
    flattened = {row for row in found if "-> fc" in row}
    assert found - flattened == {
        "feeds: stem.weight[0:6, 0, 1, 1] -> se1.weight[0, 0:6, 0, 0]",
        "feeds: se1.weight[0:2, 0, 0, 0] -> se2.weight[0, 0:2, 0, 0]",
        "feeds: stem.weight[0:3, 0, 1, 1] -> grouped.weight[0, 0:3, 1, 1]",
        "feeds: stem.weight[3:6, 0, 1, 1] -> grouped.weight[2, 0:3, 1, 1]",
        "feeds: se2.weight[0:3, 0, 0, 0] -> grouped.weight[0, 0:3, 1, 1]",
        "feeds: se2.weight[3:6, 0, 0, 0] -> grouped.weight[2, 0:3, 1, 1]",
    }
    # Every channel feeds its four pixels.
    (edge,) = (e for e in sk.trace(model, torch.randn(1, 3, 12, 12)).edges
               if e.second.parameter == "fc.weight")  # fmt: skip
    rows = np.unravel_index(edge.first.elements, (4, 3, 3, 3))[0]
    assert rows.tolist() == np.repeat(range(4), 4).tolist()


def test_a_shortcut_with_a_weight_counts_and_an_identity_does_not() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = functional.relu(m.b(functional.relu(m.a(x))) + m.down(x))
        x = functional.relu(m.d(functional.relu(m.c(x))) + x)
        return m.fc(x.mean((2, 3)))

    conv = {name: nn.Conv2d(4, 4, 3, padding=1) for name in ("stem", "a", "b", "c", "d")}
    model = Module(forward, **conv, down=nn.Conv2d(4, 4, 1), fc=nn.Linear(4, 2))
    pairs = [("stem", "a"), ("a", "b"), ("stem", "down"), ("b", "c"), ("down", "c"), ("c", "d"),
             ("d", "fc")]  # fmt: skip
    found = {row.replace(".weight", "").split("[")[0].removeprefix("feeds: ")
             + " " + row.split("-> ")[1].split(".")[0]
             for row in drawn(model, torch.randn(1, 3 + 1, 6, 6))}  # fmt: skip
    assert found == {f"{a} {b}" for a, b in pairs}


def test_skips_of_a_unet_count_concatenated_or_added() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        h1 = functional.relu(m.down1(x))
        h2 = functional.relu(m.down2(h1))
        h = m.mid(h2) + h2
        h = m.up(torch.cat([h, h2], 1))
        return m.out(h + h1)

    model = Module(
        forward, down1=nn.Conv2d(2, 4, 3, padding=1), down2=nn.Conv2d(4, 6, 3, 2, 1),
        mid=nn.Conv2d(6, 6, 3, padding=1), up=nn.ConvTranspose2d(12, 4, 2, 2),
        out=nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    assert drawn(model, torch.randn(1, 2, 8, 8)) == {
        "feeds: down1.weight[0:4, 0, 1, 1] -> down2.weight[0, 0:4, 1, 1]",
        "feeds: down2.weight[0:6, 0, 1, 1] -> mid.weight[0, 0:6, 1, 1]",
        "feeds: mid.weight[0:6, 0, 1, 1] -> up.weight[0:6, 0, 1, 1]",
        "feeds: down2.weight[0:6, 0, 1, 1] -> up.weight[6:12, 0, 1, 1]",
        "feeds: up.weight[0, 0:4, 1, 1] -> out.weight[0, 0:4, 0, 0]",
        # Past a branch of fewer pixels.
        "feeds: down1.weight[0:4, 0, 1, 1] -> out.weight[0, 0:4, 0, 0]",
    }


@pytest.mark.parametrize("kind", ["list", "stacked"])
def test_experts_are_parallel_and_those_without_tokens_are_inferred(kind: str) -> None:
    count, d, h = 4, 4, 6

    def forward(m: Module, x: Tensor) -> Tensor:
        x = m.inward(x)
        weights, chosen = m.router(x).softmax(-1).topk(2)
        total = torch.zeros_like(x)
        for expert in range(count):
            rows, slot = torch.where(chosen % 3 == expert)
            if len(rows):
                y = x[rows]
                if kind == "list":
                    y = m.experts[expert](y)
                else:
                    y = functional.linear(
                        functional.relu(functional.linear(y, m.up[expert])), m.down[expert]
                    )
                total.index_add_(0, rows, y * weights[rows, slot, None])
        return m.out(x + total)

    experts = [nn.Sequential(nn.Linear(d, h), nn.ReLU(), nn.Linear(h, d)) for _ in range(count)]
    parts: dict[str, nn.Module | nn.Parameter] = {"experts": nn.ModuleList(experts)}
    if kind == "stacked":
        parts = {"up": parameter(count, h, d), "down": parameter(count, d, h)}
    model = Module(
        forward, inward=nn.Linear(3, d), router=nn.Linear(d, count), **parts, out=nn.Linear(d, 2)
    )
    with torch.no_grad():
        model.router.weight.zero_()
        model.router.bias.copy_(torch.tensor([3.0, 2.0, 0.0, 0.0]))
    expected = {"feeds: inward.weight[0:4, 0] -> router.weight[0, 0:4]"}
    for e in range(count):
        up, down = (f"experts.{e}.{i}.weight[" for i in (0, 2)) if kind == "list" else (
            f"up[{e}, ", f"down[{e}, ")  # fmt: skip
        note = "" if e < 2 else " inferred"
        expected |= {
            f"feeds: inward.weight[0:4, 0] -> {up}0, 0:4]{note}",
            f"feeds: {up}0:6, 0] -> {down}0, 0:6]{note}",
            f"feeds: {down}0:4, 0] -> out.weight[0, 0:4]{note}",
        }
    assert drawn(model, torch.randn(5, 3)) == expected


def test_experts_that_are_summed_over_their_stack_all_write() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        h = m.inward(x).expand(3, -1, -1) @ m.up
        return m.out(m.shared(m.inward(x)) + (h @ m.down).sum(0))

    model = Module(
        forward, inward=nn.Linear(2, 4), up=parameter(3, 4, 6), down=parameter(3, 6, 4),
        shared=nn.Linear(4, 4), out=nn.Linear(4, 2),
    )  # fmt: skip
    assert {row for row in drawn(model, torch.randn(5, 2)) if "out" in row} == {
        "feeds: shared.weight[0:4, 0] -> out.weight[0, 0:4]",
        *(f"feeds: down[{e}, 0, 0:4] -> out.weight[0, 0:4]" for e in range(3)),
    }
    # Channels of one matrix are not writers each: their sum is no output of it.
    mean = Module(
        lambda m, x: m.out(m.inward(x).mean(-1, keepdim=True).expand(-1, 4)),
        inward=nn.Linear(2, 4), out=nn.Linear(4, 2),
    )  # fmt: skip
    assert not drawn(mean, torch.randn(5, 2))


def test_experts_without_tokens_in_a_stack_of_batches() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        h = m.inward(x)
        return m.out(h + (h[None, :0].expand(3, 0, 4) @ m.experts).sum((0, 1)))

    model = Module(forward, inward=nn.Linear(2, 4), experts=parameter(3, 4, 4), out=nn.Linear(4, 2))
    assert "feeds: inward.weight[0:4, 0] -> out.weight[0, 0:4]" in drawn(model, torch.randn(5, 2))


def test_layers_that_did_not_run_are_named_and_not_inferred() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        return m.layers[1](m.layers[0](x))

    layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    traced = sk.trace(Module(forward, layers=layers, unused=nn.Linear(4, 2)), torch.randn(2, 4))
    assert traced.unreached == ("layers.2.weight", "unused.weight")
    assert "not reached by these inputs: layers.2.weight, unused.weight" in str(traced)
    assert len(traced.edges) == 1


def test_recurrent_layers_by_their_content_gate_and_direction() -> None:
    model = Module(
        lambda m, x: m.out(m.lstm(m.table(x))[0]), table=nn.Embedding(9, 4),
        lstm=nn.LSTM(4, 5, 2, bidirectional=True), out=nn.Linear(10, 3),
    )  # fmt: skip
    expected = set()
    for suffix, columns in (("", "0:5"), ("_reverse", "5:10")):
        ih0, hh0, ih1, hh1 = (f"lstm.weight_{r}_l{i}{suffix}" for i in (0, 1) for r in ("ih", "hh"))
        expected |= {
            f"feeds: table.weight[0, 0:4] -> {ih0}[0, 0:4]",
            f"feeds: {ih0}[10:15, 0] -> {hh0}[0, 0:5]",
            f"feeds: {ih0}[10:15, 0] -> {ih1}[0, {columns}]",
            f"feeds: {hh0}[10:15, 0] -> {ih1}[0, {columns}]",
            f"feeds: {ih1}[10:15, 0] -> {hh1}[0, 0:5]",
            f"feeds: {ih1}[10:15, 0] -> out.weight[0, {columns}]",
            f"feeds: {hh1}[10:15, 0] -> out.weight[0, {columns}]",
        }
    assert drawn(model, TOKENS) == expected


def test_weights_that_are_views_of_one_buffer_or_computed_from_parameters() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        h = functional.linear(x, m.a)
        h = functional.linear(h, (m.b * 2).to(torch.float64).to(torch.float32))
        return functional.linear(h, torch.cat([m.c, m.d]))

    flat = torch.randn(40)
    model = Module(
        forward, a=nn.Parameter(flat[:12].view(4, 3)), b=nn.Parameter(flat[12:32].view(5, 4)),
        c=parameter(2, 5), d=parameter(3, 5),
    )  # fmt: skip
    assert drawn(model, torch.randn(2, 3)) == {
        "feeds: a[0:4, 0] -> b[0, 0:4]",
        "feeds: b[0:5, 0] -> c[0, 0:5]",
    }


def test_decomposed_layers_by_their_factors() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    sk.decompose_model(model, {"*": 3})
    assert drawn(model, torch.randn(2, 6)) == {"feeds: 0.U[0:8, 0] -> 2.Vh[0, 0:8]"}


def test_linear_attention_and_products_without_a_softmax() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        q, k, v = m.q(x), m.k(x), m.v(x)
        return m.o(functional.elu(q) @ (functional.elu(k).mT @ v))

    model = Module(forward, **{name: nn.Linear(6, 6) for name in "qkvo"})
    assert drawn(model, torch.randn(2, 5, 6)) == {
        "multiplied: q.weight[0:6, 0] -> k.weight[0:6, 0]",
        "feeds: v.weight[0:6, 0] -> o.weight[0, 0:6]",
    }


def test_what_no_rule_knows_ends_and_is_named() -> None:
    model = Module(
        lambda m, x: m.b(torch.linalg.matrix_exp(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 2)
    )
    traced = sk.trace(model, torch.randn(4, 4))
    assert traced.edges == ()
    assert set(traced.ended) == {"aten::linalg_matrix_exp"}
    assert "aten::linalg_matrix_exp" in str(traced)


class Stateful(nn.Module):
    """Everything that a forward pass may change, and an error if asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.cache: Tensor | None = None
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.cache = x
        self.new = x
        x = self.drop(self.norm(self.fc(x))) + torch.randn_like(x)
        if self.fail:
            raise RuntimeError("from the model")
        return x


@pytest.mark.parametrize("fail", [False, True])
def test_a_trace_leaves_nothing_behind(fail: bool) -> None:
    model = Stateful()
    model.drop.eval()
    model.fail = fail
    model(torch.randn(3, 4)).sum().backward() if not fail else None
    model.cache = None
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    attributes, generator = set(vars(model)), torch.get_rng_state()
    drawn_before = np.random.get_state()[1].copy()
    if fail:
        with pytest.raises(RuntimeError, match="from the model"):
            sk.trace(model, torch.randn(3, 4, generator=torch.Generator()))
    else:
        sk.trace(model, torch.randn(3, 4, generator=torch.Generator()))
    assert [m.training for m in (model, model.norm, model.drop)] == [True, True, False]
    assert set(vars(model)) == attributes
    assert model.cache is None
    assert torch.equal(torch.get_rng_state(), generator)
    assert (np.random.get_state()[1] == drawn_before).all()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert p.grad is None if grad is None else torch.equal(p.grad, grad)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_models_on_the_meta_device_wrapped_and_with_keywords() -> None:
    with torch.device("meta"):
        model = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2, enable_nested_tensor=False
        )
        x = torch.randn(1, 5, 8)
    real = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2, enable_nested_tensor=False
    )
    expected = drawn(real, torch.randn(1, 5, 8))
    assert drawn(model, src=x) == expected
    assert drawn(nn.DataParallel(real), torch.randn(1, 5, 8)) == expected
    assert len(expected) == 11


def test_a_trace_can_be_saved() -> None:
    model = nn.Sequential(nn.Embedding(9, 8), nn.TransformerEncoderLayer(8, 2, 12))
    traced = sk.trace(model, TOKENS)
    again = Trace.from_dict(json.loads(json.dumps(traced.to_dict())))
    assert [as_line(e, again) for e in again.edges] == [as_line(e, traced) for e in traced.edges]
    assert again.to_dict() == traced.to_dict()
    with pytest.raises(ValueError, match="version 0, expected 1"):
        Trace.from_dict({"version": 0})


def test_flexible_attention_and_a_forced_kernel() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.flex_attention import flex_attention

    def heads(m: Module, x: Tensor) -> list[Tensor]:
        return [t.unflatten(-1, (2, 4)).transpose(1, 2) for t in m.qkv(x).chunk(3, -1)]

    def flexible(m: Module, x: Tensor) -> Tensor:
        return m.o(flex_attention(*heads(m, x)).transpose(1, 2).flatten(2))

    def forced(m: Module, x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            z = functional.scaled_dot_product_attention(*heads(m, x))
        return m.o(z.transpose(1, 2).flatten(2))

    for forward in (flexible, forced):
        model = Module(forward, qkv=nn.Linear(8, 24), o=nn.Linear(8, 8))
        assert drawn(model, torch.randn(2, 5, 8)) == {
            "scores: qkv.weight[0:4, 0] -> qkv.weight[8:12, 0]",
            "scores: qkv.weight[4:8, 0] -> qkv.weight[12:16, 0]",
            "values: qkv.weight[16:24, 0] -> o.weight[0, 0:8]",
        }


def test_a_scale_for_all_channels_and_a_bias_of_scores_are_no_writers() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        x = m.inward(x)
        bias = m.bias(torch.arange(x.shape[1])[:, None] * torch.zeros(5).long()).permute(2, 0, 1)
        q, k, v = (w(x).unflatten(-1, (2, 2)).transpose(1, 2) for w in (m.q, m.k, m.v))
        z = (q @ k.mT + bias).softmax(-1) @ v
        return m.out(m.o(z.transpose(1, 2).flatten(2)) * torch.sigmoid(m.gate(x)))

    layers = {name: nn.Linear(4, 4) for name in ("inward", "q", "k", "v", "o", "out")}
    model = Module(forward, **layers, gate=nn.Linear(4, 1), bias=nn.Embedding(7, 2))
    found = drawn(model, torch.randn(2, 5, 4))
    assert {row for row in found if "out.weight" in row} == {
        "feeds: o.weight[0:4, 0] -> out.weight[0, 0:4]"
    }
    assert not any("bias" in row for row in found)
    assert "feeds: inward.weight[0:4, 0] -> gate.weight[0, 0:4]" in found


def test_writes_into_slices_of_a_cache() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        cache = torch.zeros(2, 5, 6)
        cache[:, :2, :4] = m.a(x[:, :2])
        cache[:, 2:].copy_(m.b(x[:, 2:]))
        return m.out(cache)

    model = Module(forward, a=nn.Linear(3, 4), b=nn.Linear(3, 6), out=nn.Linear(6, 2))
    assert drawn(model, torch.randn(2, 5, 3)) == {
        "feeds: a.weight[0:4, 0] -> out.weight[0, 0:4]",
        "feeds: b.weight[0:6, 0] -> out.weight[0, 0:6]",
    }


def test_a_flat_parameter_is_known_by_the_matrices_that_are_views_of_it() -> None:
    flat = nn.Parameter(torch.randn(32))
    model = Module(
        lambda m, x: functional.linear(functional.linear(x, m.a), m.b),
        flat=flat, a=nn.Parameter(flat.detach()[:12].view(4, 3)),
        b=nn.Parameter(flat.detach()[12:].view(5, 4)),
    )  # fmt: skip
    assert drawn(model, torch.randn(2, 3)) == {"feeds: a[0:4, 0] -> b[0, 0:4]"}


def test_lazy_parameters_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"0\.weight is not initialised yet \(lazy\)"):
        sk.trace(nn.Sequential(nn.LazyLinear(3)), torch.randn(2, 4))


def test_what_cannot_be_followed_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"one row at least, got tensors of shape \(0, 4\)"):
        sk.trace(model, torch.randn(0, 4))
    scripted = nn.Sequential(torch.jit.trace(model, torch.randn(1, 4)))
    for watch in (sk.SpectralMonitor, sk.trace):
        with pytest.raises(TypeError, match=r"0 is a TorchScript module.*state_dict"):
            watch(scripted)


def test_pairs_that_are_no_trace_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    traced = sk.trace(model, torch.randn(1, 4))
    for given, told in [
        (traced.to_dict(), r"is read by spectral_kernels\.Trace\.from_dict"),
        ([traced], r"expected \(name, name of the next layer\), got Trace"),
        (3, r"expected \(name, name of the next layer\), got 3"),
    ]:
        with pytest.raises(TypeError, match=told):
            sk.SpectralMonitor(model, pairs=given)


def test_nested_tensors_end_and_are_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    rows = torch.nested.nested_tensor([torch.randn(n, 4) for n in (2, 3)], layout=torch.jagged)
    traced = sk.trace(model, rows)
    assert traced.edges == ()
    assert set(traced.ended) == {"aten::linear"}


def test_a_state_dict_has_no_forward_pass() -> None:
    with pytest.raises(TypeError, match="trace the module"):
        sk.trace({"a": torch.zeros(2, 2)}, torch.zeros(1))  # type: ignore[arg-type]


def test_lines_of_repeated_layers_are_one() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(8)))
    traced = sk.trace(model, torch.randn(2, 4))
    assert "  {0..6}.weight -> {1..7}.weight: feeds (7 of these)" in str(traced).splitlines()
    full = traced.explain(full=True).splitlines()
    assert "  3.weight -> 4.weight: feeds" in full
    assert len(full) == 8


def test_experts_are_lines_of_one_kind_whichever_had_inputs() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        return m.out(m.experts[1](x) + m.experts[4](x) + m.experts[5](x))

    experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4)) for _ in range(16))
    traced = sk.trace(Module(forward, experts=experts, out=nn.Linear(4, 2)), torch.randn(2, 4))
    line = "  experts.{0..15}.0.weight -> experts.{0..15}.1.weight: feeds (16 of these)"
    assert line in str(traced).splitlines()
    full = traced.explain(full=True)
    assert "experts.1.0.weight -> experts.1.1.weight: feeds\n" in full
    assert "  experts.0.0.weight -> experts.0.1.weight: feeds (as the experts beside it)" in full
