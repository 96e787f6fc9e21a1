"""Traces through attentions: fused, grouped, rotary, linear, with a cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.support.traced import TOKENS, Module, drawn, parameter


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


def test_linear_attention_and_products_without_a_softmax() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        q, k, v = m.q(x), m.k(x), m.v(x)
        return m.o(functional.elu(q) @ (functional.elu(k).mT @ v))

    model = Module(forward, **{name: nn.Linear(6, 6) for name in "qkvo"})
    assert drawn(model, torch.randn(2, 5, 6)) == {
        "multiplied: q.weight[0:6, 0] -> k.weight[0:6, 0]",
        "feeds: v.weight[0:6, 0] -> o.weight[0, 0:6]",
    }


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
