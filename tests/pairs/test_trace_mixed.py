"""A trace names the operations that mix outputs, and follows products that are written out."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from spectral_monitor.pairs.tracing.map import Trace
from torch import Tensor, nn
from torch.nn import functional

import spectral_kernels as sk
from tests.support.traced import Module, drawn, parameter


def test_outputs_that_an_operation_mixes_are_named() -> None:
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0]

    class Packed(nn.Module):
        """A layer whose weight is no parameter, as of a quantised one."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("packed", torch.randint(-8, 8, (4, 4), dtype=torch.int8))

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, self.packed.to(x.dtype) / 8)

    mixing: dict[str, Callable[[Module, Tensor], Tensor]] = {
        "aten::mm": lambda m, x: x @ turn,
        "aten::bmm": lambda m, x: torch.einsum("ni,nij->nj", x, turn.expand(len(x), 4, 4)),
        "aten::addmm": lambda m, x: torch.addmm(torch.ones(4), x, turn) + m.added,
        "aten::mean": lambda m, x: x.mean(-1, keepdim=True).expand(-1, 4) * 2,
        "aten::sum": lambda m, x: (x[:, None] * turn).sum(-1),
        "aten::amax": lambda m, x: torch.cat([x.amax(-1, keepdim=True), m.added.expand(3, 3)], -1),
        "aten::t": lambda m, x: m.packed(x),
        "aten::_cdist_forward": lambda m, x: torch.cdist(x, turn),
    }
    for name, mix in mixing.items():
        width = 3 if name == "aten::amax" else 4
        model = Module(
            lambda m, x, mix=mix: m.c(mix(m, m.a(x))) + m.d(m.a(x)), a=nn.Linear(5, 4),
            c=nn.Linear(4, 2), d=nn.Linear(4, 2), added=parameter(1, width), packed=Packed(),
        )  # fmt: skip
        traced = sk.trace(model, torch.randn(3, 5))
        ((first, operation, last),) = traced.mixed
        assert (first, last) == ("a.weight", "c.weight"), name
        assert operation == (name if name != "aten::t" else "aten::mm")
        assert f"c.weight: {operation} mixes the outputs of a.weight before" in str(traced)
        assert Trace.from_dict(json.loads(json.dumps(traced.to_dict()))).mixed == traced.mixed
        pairs = {(edge.first.parameter, edge.second.parameter) for edge in traced.edges}
        assert ("a.weight", "d.weight") in pairs
        assert ("a.weight", "c.weight") not in pairs


def test_norms_written_out_and_scores_mix_nothing() -> None:
    def norm(x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def forward(m: Module, x: Tensor) -> Tensor:
        x = m.inward(x)
        for _ in range(2):
            x = norm(x + m.b(norm(m.a(x))))
        # A bias of scores by position is in the scores alone.
        scores = m.a(x) @ m.b(x).mT + m.bias
        return m.out(scores.softmax(-1) @ x)

    layers = {name: nn.Linear(4, 4) for name in ("inward", "a", "b", "out")}
    traced = sk.trace(Module(forward, **layers, bias=parameter(5, 5)), torch.randn(2, 5, 4))
    assert traced.mixed == ()


def test_scores_that_a_layer_reads_have_no_writer() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        return m.heads(m.q(x) @ m.k(x).mT)

    model = Module(forward, q=nn.Linear(4, 4), k=nn.Linear(4, 4), heads=nn.Linear(5, 2))
    traced = sk.trace(model, torch.randn(2, 5, 4))
    assert traced.mixed == (("", "", "heads.weight"),)
    assert "heads.weight: what wrote its input is not known" in str(traced)


@pytest.mark.parametrize("fused", [False, True])
def test_attention_written_out_elementwise(fused: bool) -> None:
    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (2, 3)).transpose(1, 2)

    def forward(m: Module, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).chunk(3, -1) if fused else (m.q(x), m.k(x), m.v(x))
        q, k, v = (heads(t) for t in (q, k, v))
        scores = (q[:, :, :, None] * k[:, :, None] * 0.5).sum(-1)
        mask = torch.ones(5, 5).triu(1).bool()
        probabilities = scores.masked_fill(mask, -torch.inf).softmax(-1)
        z = (probabilities[..., None] * v[:, :, None]).sum(-2)
        return m.o(z.transpose(1, 2).flatten(2))

    layers = {"qkv": nn.Linear(4, 18)} if fused else {name: nn.Linear(4, 6) for name in "qkv"}
    model = Module(forward, **layers, o=nn.Linear(6, 6))
    q, k, v = ("qkv", "qkv", "qkv") if fused else ("q", "k", "v")
    k0, v0 = (6, 12) if fused else (0, 0)
    assert drawn(model, torch.randn(2, 5, 4)) == {
        f"scores: {q}.weight[0:3, 0] -> {k}.weight[{k0}:{k0 + 3}, 0]",
        f"scores: {q}.weight[3:6, 0] -> {k}.weight[{k0 + 3}:{k0 + 6}, 0]",
        f"values: {v}.weight[{v0}:{v0 + 6}, 0] -> o.weight[0, 0:6]",
    }
    assert sk.trace(model, torch.randn(2, 5, 4)).mixed == ()


def test_a_dot_product_written_out_and_a_norm_of_a_gated_layer() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        similar = (m.q(x) * m.k(x)).sum(-1, keepdim=True)
        gated = m.gate(x).sigmoid() * m.up(x)
        gated = gated * torch.rsqrt(gated.pow(2).mean(-1, keepdim=True))
        return m.down(gated) * similar

    model = Module(forward, **{n: nn.Linear(4, 4) for n in ("q", "k", "gate", "up", "down")})
    assert drawn(model, torch.randn(2, 4)) == {
        "multiplied: q.weight[0:4, 0] -> k.weight[0:4, 0]",
        "feeds: gate.weight[0:4, 0] -> down.weight[0, 0:4]",
        "feeds: up.weight[0:4, 0] -> down.weight[0, 0:4]",
    }
