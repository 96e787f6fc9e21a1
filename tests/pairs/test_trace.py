"""`sk.trace`: which outputs of which weight meet which inputs of which, exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import spectral_kernels as sk
from tests.support.traced import TOKENS, Module, drawn, parameter


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


def test_what_no_rule_knows_ends_and_is_named() -> None:
    model = Module(
        lambda m, x: m.b(torch.linalg.matrix_exp(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 2)
    )
    traced = sk.trace(model, torch.randn(4, 4))
    assert traced.edges == ()
    assert set(traced.ended) == {"aten::linalg_matrix_exp"}
    assert "aten::linalg_matrix_exp" in str(traced)


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


def test_a_flat_parameter_is_known_by_the_matrices_that_are_views_of_it() -> None:
    flat = nn.Parameter(torch.randn(32))
    model = Module(
        lambda m, x: functional.linear(functional.linear(x, m.a), m.b),
        flat=flat, a=nn.Parameter(flat.detach()[:12].view(4, 3)),
        b=nn.Parameter(flat.detach()[12:].view(5, 4)),
    )  # fmt: skip
    assert drawn(model, torch.randn(2, 3)) == {"feeds: a[0:4, 0] -> b[0, 0:4]"}


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
