"""What is guessed without inputs, what is known from a family, and what is asked for instead."""

from __future__ import annotations

import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from torch import Tensor, nn

from tests.support.named_models import Named, attention, linear
from tests.support.paired import layer_pairs, watch


def mlp(width: int = 4, hidden: int = 6) -> Named:
    return Named(fc1=linear(hidden, width), fc2=linear(width, hidden))


def test_a_table_that_is_its_own_head_is_watched_and_no_neighbour_of_itself() -> None:
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 50, bias=False))
    model[1].weight = model[0].weight
    monitor = watch(model)
    assert monitor.pairs == ()
    assert [row.reason for row in monitor.rejected_pairs] == [
        "same weight: a layer is no neighbour of itself"
    ]
    assert monitor.step(0) is not None


def test_a_tied_head_before_other_layers_is_not_in_their_chain() -> None:
    """As in an alphabetical order of names: ``cls.decoder`` is before ``cls.transform``."""
    model = Named(embed=nn.Embedding(9, 4), fc=linear(4, 4), decoder=nn.Linear(4, 9))
    model.transform = linear(4, 4)
    model.decoder.weight = model.embed.weight
    assert layer_pairs(model) == [("embed", "fc")]
    assert "a head with the weights of a table, before other layers" in watch(model).explain()
    named = dict(model.named_parameters(remove_duplicate=False))
    order = ("embed.weight", "fc.weight", "decoder.bias", "decoder.weight", "transform.weight")
    state: dict[str, Tensor] = {name: named[name] for name in order}
    assert layer_pairs(state) == [("embed", "fc")]


def test_queries_that_are_the_keys_are_no_pair_of_themselves() -> None:
    model = attention()
    model.k_proj.weight = model.q_proj.weight
    assert not any("q_proj" in a and "q_proj" in b for a, b in layer_pairs(model))


@pytest.mark.parametrize("name", ["query_key_value", "qkv", "Wqkv"])
def test_the_layout_of_a_fused_weight_is_asked_for(name: str) -> None:
    inside = Named(**{name: linear(12, 4)}, dense=linear(4, 4))
    inside.num_heads = 2
    model = Named(before=linear(4, 3), attn=inside)
    assert layer_pairs(model) == [("before", f"attn.{name}")]
    (row,) = watch(model).rejected_pairs
    assert row.first == f"attn.{name}.weight"
    for words in ("does not tell which rows", "sk.trace", "config="):
        assert words in row.reason


def test_a_block_with_one_norm_may_be_parallel_and_is_not_guessed() -> None:
    block = Named(norm=nn.LayerNorm(4), attn=attention(), mlp=mlp())
    assert ("attn.o_proj", "mlp.fc1") not in layer_pairs(block)
    assert "reads what attention wrote or stands beside it" in watch(block).explain()
    # Two norms, or none, are those of serial blocks.
    block.norm2 = nn.LayerNorm(4)
    assert ("attn.o_proj", "mlp.fc1") in layer_pairs(block)


def test_a_parallel_block_is_told_by_its_module() -> None:
    block = Named(n1=nn.LayerNorm(4), n2=nn.LayerNorm(4), attn=attention(), mlp=mlp())
    block.use_parallel_residual = True
    model = Named(first=linear(4, 3), block=block, last=linear(2, 4))
    found = layer_pairs(model)
    assert ("block.attn.o_proj", "block.mlp.fc1") not in found
    assert [pair for pair in found if "first" in pair or "last" in pair[1]] == [
        *(("first", f"block.attn.{role}_proj") for role in "qkv"),
        ("first", "block.mlp.fc1"),
        ("block.attn.o_proj", "last"),
        ("block.mlp.fc2", "last"),
    ]


def test_what_a_cross_attention_reads_is_asked_for() -> None:
    model = Named(self_attn=attention(), cross_attn=attention())
    found = layer_pairs(model)
    assert ("self_attn.o_proj", "cross_attn.q_proj") in found
    assert not any(b in ("cross_attn.k_proj", "cross_attn.v_proj") and a.startswith("self")
                   for a, b in found)  # fmt: skip
    assert "keys and values of a cross attention" in watch(model).explain()


def test_an_attention_of_which_a_part_is_not_watched_is_no_chain() -> None:
    model = Named(first=linear(4, 3), attn=attention(), last=linear(2, 4))
    monitor = watch(model, exclude="attn.k_proj.weight")
    assert monitor.pairs == ()
    assert "attn.k_proj.weight between them is not watched" in monitor.explain()


def test_a_dictionary_of_modules_may_run_in_any_order() -> None:
    model = Named(a=linear(4, 3), tasks=nn.ModuleDict({"x": mlp(), "y": mlp()}), b=linear(2, 4))
    assert layer_pairs(model) == [("tasks.x.fc1", "tasks.x.fc2"), ("tasks.y.fc1", "tasks.y.fc2")]
    assert "which of them run is not known" in watch(model).explain()


def test_squeeze_excitation_scales_what_passes_by() -> None:
    se = Named(fc1=nn.Conv2d(6, 2, 1), fc2=nn.Conv2d(2, 6, 1))
    model = Named(conv1=nn.Conv2d(3, 6, 3), se=se, conv2=nn.Conv2d(6, 4, 1))
    assert layer_pairs(model) == [
        ("conv1", "se.fc1"), ("se.fc1", "se.fc2"), ("conv1", "conv2"), ("se.fc2", "conv2"),
    ]  # fmt: skip


def test_experts_are_side_by_side_and_their_router_writes_nothing() -> None:
    experts = nn.ModuleList(mlp() for _ in range(3))
    moe = Named(gate=linear(3, 4), experts=experts, shared_expert=mlp())
    found = layer_pairs(Named(a=linear(4, 3), moe=moe, b=linear(2, 4)))
    every = [*(f"moe.experts.{i}" for i in range(3)), "moe.shared_expert"]
    assert sorted(found) == sorted([
        ("a", "moe.gate"),
        *(("a", f"{one}.fc1") for one in every),
        *((f"{one}.fc1", f"{one}.fc2") for one in every),
        *((f"{one}.fc2", "b") for one in every),
    ])  # fmt: skip


def test_stacked_experts_feed_each_their_own() -> None:
    experts = Named(
        w1=nn.Parameter(torch.randn(3, 6, 4)), w2=nn.Parameter(torch.randn(3, 4, 6)),
        w3=nn.Parameter(torch.randn(3, 6, 4)),
    )  # fmt: skip
    found = layer_pairs(Named(a=linear(4, 3), moe=Named(experts=experts), b=linear(2, 4)))
    at = "moe.experts"
    assert sorted(found) == sorted([
        *(("a", f"{at}.{w}[{i}]") for w in ("w1", "w3") for i in range(3)),
        *((f"{at}.{w}[{i}]", f"{at}.w2[{i}]") for w in ("w1", "w3") for i in range(3)),
        *((f"{at}.w2[{i}]", "b") for i in range(3)),
    ])  # fmt: skip


def test_many_experts_make_no_product_of_rejections() -> None:
    layers = nn.ModuleList(
        Named(
            self_attn=attention(),
            mlp=Named(gate=linear(32, 4), experts=nn.ModuleList(mlp(4, 5) for _ in range(32))),
        )
        for _ in range(6)
    )
    monitor = watch(Named(embed=nn.Embedding(11, 4), layers=layers, head=linear(11, 4)))
    assert len(monitor.matrices) == 6 * (4 + 1 + 64) + 2
    # o feeds the router and every expert, every expert its own and the three that come next.
    assert len(monitor.pairs) == 6 * (3 + 1 + 32 * 2) + 5 * 32 * 3 + 3 + 32
    assert monitor.rejected_pairs == ()
    assert len(monitor.explain().splitlines()) < 60
    # The head reads other sizes than the experts give: one reason, not one for each.
    moe = Named(experts=nn.ModuleList(mlp(4, 5) for _ in range(32)))
    wrong = watch(Named(moe=moe, head=linear(11, 6)))
    (row,) = wrong.rejected_pairs
    assert "(and 31 more like these)" in row.reason


def test_a_layer_after_a_block_is_not_one_beside_it() -> None:
    blocks = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    stage = Named(blocks=blocks, downsample=nn.Conv2d(4, 8, 2))
    assert layer_pairs(stage)[-1] == ("blocks.1", "downsample")
    # All widths are the same: it may be either.
    either = Named(blocks=blocks, downsample=nn.Conv2d(4, 4, 2))
    assert not any("downsample" in b for _, b in layer_pairs(either))
    assert "stands beside the block or comes after it is not known" in watch(either).explain()


def test_positions_alone_are_added_somewhere() -> None:
    model = Named(pos_embed=nn.Parameter(torch.randn(9, 4)), proj=linear(4, 4), fc=linear(2, 4))
    assert layer_pairs(model) == [("proj", "fc")]
    assert "positions are added somewhere" in watch(model).explain()


def test_a_module_under_two_names_is_one_layer() -> None:
    body = mlp()
    model = Named(a=linear(4, 3), body=body, alias=body.fc1)
    assert layer_pairs(model) == [("a", "body.fc1"), ("body.fc1", "body.fc2")]


def adapted(outputs: int, inputs: int, rank: int = 2) -> Named:
    """What PEFT puts in place of a linear layer."""
    down, up = linear(rank, inputs), linear(outputs, rank)
    return Named(
        base_layer=linear(outputs, inputs),
        lora_A=nn.ModuleDict({"default": down}),
        lora_B=nn.ModuleDict({"default": up}),
    )


def test_adapters_read_and_write_beside_their_layer() -> None:
    model = Named(a=linear(4, 3), b=adapted(5, 4), c=linear(2, 5))
    assert sorted(layer_pairs(model)) == sorted([
        ("a", "b.base_layer"), ("a", "b.lora_A.default"),
        ("b.lora_A.default", "b.lora_B.default"),
        ("b.base_layer", "c"), ("b.lora_B.default", "c"),
    ])  # fmt: skip


def test_an_attention_with_adapters_keeps_its_pairs() -> None:
    model = attention()
    model.q_proj, model.v_proj = adapted(4, 4), adapted(4, 4)
    found = layer_pairs(Named(a=linear(4, 3), attn=model))
    for role in "qv":
        at = f"attn.{role}_proj"
        assert (f"{at}.lora_A.default", f"{at}.lora_B.default") in found
        assert ("a", f"{at}.base_layer") in found
        assert ("a", f"{at}.lora_A.default") in found
    for one in ("base_layer", "lora_B.default"):
        assert (f"attn.q_proj.{one}", "attn.k_proj") in found
        assert (f"attn.v_proj.{one}", "attn.o_proj") in found
    assert not any("base_layer" in a and "lora_A" in b for a, b in found)


def test_square_layers_of_one_shape_are_no_chain_unless_they_are_numbered() -> None:
    class Mixing(nn.Module):
        """Time mixing of RWKV: the first three read the same."""

        def __init__(self) -> None:
            super().__init__()
            for name in ("key", "value", "receptance", "output"):
                setattr(self, name, nn.Linear(6, 6, bias=False))

    mixing = SpectralMonitor(Mixing(), reference=None)
    assert not mixing.pairs
    assert "which is not known without sk.trace or pairs=" in mixing.explain()
    numbered = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    assert len(SpectralMonitor(numbered, reference=None).pairs) == 1


def test_gates_of_an_attention_are_no_layers_of_a_chain() -> None:
    model = Named(attn=attention(gate_proj=linear(4, 4)), mlp=mlp())
    found = layer_pairs(model)
    assert ("attn.v_proj", "attn.o_proj") in found
    assert not any("gate_proj" in name for pair in found for name in pair)
    assert "beside an attention" in watch(model).explain()


def test_a_pooler_and_a_head_before_other_layers_are_in_no_chain() -> None:
    model = Named(last=linear(4, 3), pooler=linear(4, 4), head=linear(9, 4))
    assert layer_pairs(model) == []
    model = Named(lm_head=linear(4, 3), first=linear(5, 4), second=linear(6, 5))
    assert layer_pairs(model) == [("first", "second")]


def test_towers_of_two_kinds_of_input_are_not_chained() -> None:
    model = Named(
        vision_model=linear(4, 3), text_model=linear(4, 5),
        visual_projection=linear(6, 4), text_projection=linear(6, 4),
    )  # fmt: skip
    assert layer_pairs(model) == []
    assert "towers of several kinds" in watch(model).explain()
    # One kind alone is a chain by its order.
    model = Named(vision_model=linear(4, 3), head=linear(6, 4))
    assert layer_pairs(model) == [("vision_model", "head")]


def test_a_table_after_other_layers_is_read_by_something_unknown() -> None:
    model = Named(encoder=linear(4, 3), segments=nn.Embedding(7, 4), lm_head=linear(9, 4))
    assert layer_pairs(model) == []


def test_an_mlp_before_the_attention_may_run_after_it() -> None:
    blocks = [Named(mlp=mlp(), attn=attention()) for _ in range(2)]
    found = layer_pairs(Named(first=linear(4, 3), layers=nn.Sequential(*blocks), last=linear(5, 4)))
    assert ("layers.0.mlp.fc1", "layers.0.mlp.fc2") in found
    assert not any(a.rpartition(".")[0] != b.rpartition(".")[0] for a, b in found)


def test_queries_and_keys_that_are_modules_are_no_chain() -> None:
    inside = Named(**{f"{r}_proj": Named(inner=Named(linear=linear(4, 4))) for r in "qkvo"})
    model = Named(before=linear(4, 3), attn=inside, mlp=mlp())
    assert layer_pairs(model) == [("mlp.fc1", "mlp.fc2")]
    assert "modules of several layers" in watch(model).explain()


def test_narrow_layers_around_a_block_are_in_no_order() -> None:
    model = Named(attn=attention(), mlp=mlp(), bottleneck=linear(4, 4))
    assert ("mlp.fc2", "bottleneck") not in layer_pairs(model)
    nested = Named(inner=attention(), output=linear(4, 4))
    model = Named(attention=nested, mlp=mlp(), bottleneck=linear(4, 4))
    assert ("mlp.fc2", "bottleneck") not in layer_pairs(model)
    # A convolution's block has no attention, and is one as it is registered.
    model = Named(first=linear(4, 3), bottleneck=linear(5, 4))
    assert layer_pairs(model) == [("first", "bottleneck")]


def test_lists_of_as_many_modules_may_take_turns() -> None:
    def entries(count: int) -> nn.ModuleList:
        return nn.ModuleList(nn.Sequential(linear(4, 4), linear(4, 4)) for _ in range(count))

    model = Named(embeddings=entries(2), blocks=entries(2), head=linear(9, 4))
    inside = [
        (f"{name}.{i}.0", f"{name}.{i}.1") for name in ("embeddings", "blocks") for i in (0, 1)
    ]
    assert layer_pairs(model) == inside
    assert "may take turns" in watch(model).explain()
    model = Named(embeddings=entries(1), blocks=entries(2), head=linear(9, 4))
    assert ("blocks.1.1", "head") in layer_pairs(model)


def test_a_config_of_layers_that_differ_does_not_tell_a_number() -> None:
    class Config:
        @property
        def num_key_value_heads(self) -> int:
            raise RuntimeError("a per-layer attribute")

    model = attention()
    model.config = Config()
    assert ("q_proj", "k_proj") in layer_pairs(model)
