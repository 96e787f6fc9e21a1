"""What is guessed without inputs, what is known from a family, and what is asked for instead."""

from __future__ import annotations

import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from torch import Tensor, nn

from tests.support.named_models import Named, linear


def watch(model: nn.Module | dict[str, Tensor], **options: object) -> SpectralMonitor:
    return SpectralMonitor(model, reference=None, **options)  # type: ignore[arg-type]


def keys(model: nn.Module | dict[str, Tensor], **options: object) -> list[tuple[str, str]]:
    """The pairs, without ``.weight``."""
    pairs = watch(model, **options).pairs
    return [(p.first.replace(".weight", ""), p.second.replace(".weight", "")) for p in pairs]


def attention(width: int = 4, **extra: nn.Module) -> Named:
    layers = Named(**{f"{role}_proj": linear(width, width) for role in "qkvo"}, **extra)
    layers.num_heads = 2
    return layers


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
    assert keys(model) == [("embed", "fc")]
    assert "a head with the weights of a table, before other layers" in watch(model).explain()
    named = dict(model.named_parameters(remove_duplicate=False))
    order = ("embed.weight", "fc.weight", "decoder.bias", "decoder.weight", "transform.weight")
    state: dict[str, Tensor] = {name: named[name] for name in order}
    assert keys(state) == [("embed", "fc")]


def test_queries_that_are_the_keys_are_no_pair_of_themselves() -> None:
    model = attention()
    model.k_proj.weight = model.q_proj.weight
    assert not any("q_proj" in a and "q_proj" in b for a, b in keys(model))


@pytest.mark.parametrize("name", ["query_key_value", "qkv", "Wqkv"])
def test_the_layout_of_a_fused_weight_is_asked_for(name: str) -> None:
    inside = Named(**{name: linear(12, 4)}, dense=linear(4, 4))
    inside.num_heads = 2
    model = Named(before=linear(4, 3), attn=inside)
    assert keys(model) == [("before", f"attn.{name}")]
    (row,) = watch(model).rejected_pairs
    assert row.first == f"attn.{name}.weight"
    for words in ("does not tell which rows", "sk.trace", "config="):
        assert words in row.reason


def test_a_block_with_one_norm_may_be_parallel_and_is_not_guessed() -> None:
    block = Named(norm=nn.LayerNorm(4), attn=attention(), mlp=mlp())
    assert ("attn.o_proj", "mlp.fc1") not in keys(block)
    assert "reads what attention wrote or stands beside it" in watch(block).explain()
    # Two norms, or none, are those of serial blocks.
    block.norm2 = nn.LayerNorm(4)
    assert ("attn.o_proj", "mlp.fc1") in keys(block)


def test_a_parallel_block_is_told_by_its_module() -> None:
    block = Named(n1=nn.LayerNorm(4), n2=nn.LayerNorm(4), attn=attention(), mlp=mlp())
    block.use_parallel_residual = True
    model = Named(first=linear(4, 3), block=block, last=linear(2, 4))
    found = keys(model)
    assert ("block.attn.o_proj", "block.mlp.fc1") not in found
    assert [pair for pair in found if "first" in pair or "last" in pair[1]] == [
        *(("first", f"block.attn.{role}_proj") for role in "qkv"),
        ("first", "block.mlp.fc1"),
        ("block.attn.o_proj", "last"),
        ("block.mlp.fc2", "last"),
    ]


def test_what_a_cross_attention_reads_is_asked_for() -> None:
    model = Named(self_attn=attention(), cross_attn=attention())
    found = keys(model)
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
    assert keys(model) == [("tasks.x.fc1", "tasks.x.fc2"), ("tasks.y.fc1", "tasks.y.fc2")]
    assert "which of them run is not known" in watch(model).explain()


def test_squeeze_excitation_scales_what_passes_by() -> None:
    se = Named(fc1=nn.Conv2d(6, 2, 1), fc2=nn.Conv2d(2, 6, 1))
    model = Named(conv1=nn.Conv2d(3, 6, 3), se=se, conv2=nn.Conv2d(6, 4, 1))
    assert keys(model) == [
        ("conv1", "se.fc1"), ("se.fc1", "se.fc2"), ("conv1", "conv2"), ("se.fc2", "conv2"),
    ]  # fmt: skip


def test_experts_are_side_by_side_and_their_router_writes_nothing() -> None:
    experts = nn.ModuleList(mlp() for _ in range(3))
    moe = Named(gate=linear(3, 4), experts=experts, shared_expert=mlp())
    found = keys(Named(a=linear(4, 3), moe=moe, b=linear(2, 4)))
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
    found = keys(Named(a=linear(4, 3), moe=Named(experts=experts), b=linear(2, 4)))
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
    assert keys(stage)[-1] == ("blocks.1", "downsample")
    # All widths are the same: it may be either.
    either = Named(blocks=blocks, downsample=nn.Conv2d(4, 4, 2))
    assert not any("downsample" in b for _, b in keys(either))
    assert "stands beside the block or comes after it is not known" in watch(either).explain()


def test_positions_alone_are_added_somewhere() -> None:
    model = Named(pos_embed=nn.Parameter(torch.randn(9, 4)), proj=linear(4, 4), fc=linear(2, 4))
    assert keys(model) == [("proj", "fc")]
    assert "positions are added somewhere" in watch(model).explain()


def test_a_module_under_two_names_is_one_layer() -> None:
    body = mlp()
    model = Named(a=linear(4, 3), body=body, alias=body.fc1)
    assert keys(model) == [("a", "body.fc1"), ("body.fc1", "body.fc2")]


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
    assert sorted(keys(model)) == sorted([
        ("a", "b.base_layer"), ("a", "b.lora_A.default"),
        ("b.lora_A.default", "b.lora_B.default"),
        ("b.base_layer", "c"), ("b.lora_B.default", "c"),
    ])  # fmt: skip


def test_an_attention_with_adapters_keeps_its_pairs() -> None:
    model = attention()
    model.q_proj, model.v_proj = adapted(4, 4), adapted(4, 4)
    found = keys(Named(a=linear(4, 3), attn=model))
    for role in "qv":
        at = f"attn.{role}_proj"
        assert (f"{at}.lora_A.default", f"{at}.lora_B.default") in found
        assert ("a", f"{at}.base_layer") in found
        assert ("a", f"{at}.lora_A.default") in found
    for one in ("base_layer", "lora_B.default"):
        assert (f"attn.q_proj.{one}", "attn.k_proj") in found
        assert (f"attn.v_proj.{one}", "attn.o_proj") in found
    assert not any("base_layer" in a and "lora_A" in b for a, b in found)


def llama(layers: int = 2) -> Named:
    def block() -> Named:
        gated = Named(gate_proj=linear(6, 4), up_proj=linear(6, 4), down_proj=linear(4, 6))
        return Named(self_attn=attention(), mlp=gated)

    body = Named(
        embed_tokens=nn.Embedding(9, 4), layers=nn.ModuleList(block() for _ in range(layers))
    )
    return Named(model=body, lm_head=linear(9, 4))


CONFIG = {"model_type": "llama", "num_attention_heads": 2}


def test_a_known_family_says_so_with_or_without_its_modules() -> None:
    model = llama()
    state = dict(model.state_dict())
    model.config = CONFIG
    expected = watch(model)
    assert {pair.origin for pair in expected.pairs} == {"preset"}
    assert all(pair.reason.endswith(", as in llama") for pair in expected.pairs)
    assert "(preset)" in expected.explain()
    told = watch(state, config=CONFIG)
    assert [pair.key for pair in told.pairs] == [pair.key for pair in expected.pairs]
    assert {pair.origin for pair in told.pairs} == {"preset"}
    # Without being told, the same by their names, but for heads.
    guessed = watch(state)
    assert {pair.origin for pair in guessed.pairs} == {"guessed"}
    assert "(guessed)" in guessed.explain()


def test_a_layer_that_a_family_does_not_have_takes_its_preset_away() -> None:
    model = llama()
    model.config = CONFIG
    model.value_head = linear(1, 4)
    beside = watch(model)
    assert {pair.origin for pair in beside.pairs} == {"preset"}
    assert "value_head.weight" in [row.first for row in beside.rejected_pairs]
    model.model.layers[1].adapter = linear(4, 4)
    inside = watch(model)
    assert {pair.origin for pair in inside.pairs} == {"guessed"}
    assert "model.layers.1.adapter.weight" in [row.first for row in inside.rejected_pairs]


def falcon(kv_heads: int, **config: object) -> Named:
    rows = (4 + 2 * kv_heads) * 2
    inside = Named(query_key_value=linear(rows, 8), dense=linear(8, 8))
    block = Named(self_attention=inside, mlp=Named(dense_h_to_4h=linear(9, 8),
                                                   dense_4h_to_h=linear(8, 9)))  # fmt: skip
    model = Named(word_embeddings=nn.Embedding(7, 8), h=nn.ModuleList([block]))
    model.config = {"model_type": "falcon", "num_attention_heads": 4, **config}
    return model


@pytest.mark.parametrize(
    ("kv_heads", "config", "rows"),
    [
        (2, {"new_decoder_architecture": True, "num_kv_heads": 2},
         [("q", 0, 4), ("k", 4, 6), ("v", 6, 8), ("q", 8, 12), ("k", 12, 14), ("v", 14, 16)]),
        (1, {"multi_query": True, "parallel_attn": True},
         [("q", 0, 8), ("k", 8, 10), ("v", 10, 12)]),
    ],
    ids=["40B", "7B"],
)  # fmt: skip
def test_grouped_queries_of_falcon_are_read_where_they_are(
    kv_heads: int, config: dict[str, object], rows: list[tuple[str, int, int]]
) -> None:
    """A perfect alignment planted in the rows of queries and keys is found, and is nowhere else."""
    torch.manual_seed(0)
    model = falcon(kv_heads, **config).double()
    with torch.no_grad():
        weight = model.h[0].self_attention.query_key_value.weight
        key = torch.randn(2, 8, dtype=torch.float64)
        for role, start, stop in rows:
            if role == "q":
                for head in range(start, stop, 2):
                    weight[head : head + 2] = key
            elif role == "k":
                weight[start:stop] = 3 * key
    frame = watch(model).step(0)
    assert frame is not None
    name = "h.0.self_attention.query_key_value.weight"
    assert frame.alignment[f"{name}[q]", f"{name}[k]"].tolist() == pytest.approx([1.0, 1.0])


def test_a_fused_weight_of_other_sizes_than_its_family_is_refused() -> None:
    model = falcon(3, new_decoder_architecture=True, num_kv_heads=2)
    reasons = [row.reason for row in watch(model).rejected_pairs]
    assert "20 rows do not divide into 4 query and 2 x 2 other heads" in reasons


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
    found = keys(model)
    assert ("attn.v_proj", "attn.o_proj") in found
    assert not any("gate_proj" in name for pair in found for name in pair)
    assert "beside an attention" in watch(model).explain()


def test_a_pooler_and_a_head_before_other_layers_are_in_no_chain() -> None:
    model = Named(last=linear(4, 3), pooler=linear(4, 4), head=linear(9, 4))
    assert keys(model) == []
    model = Named(lm_head=linear(4, 3), first=linear(5, 4), second=linear(6, 5))
    assert keys(model) == [("first", "second")]


def test_towers_of_two_kinds_of_input_are_not_chained() -> None:
    model = Named(
        vision_model=linear(4, 3), text_model=linear(4, 5),
        visual_projection=linear(6, 4), text_projection=linear(6, 4),
    )  # fmt: skip
    assert keys(model) == []
    assert "towers of several kinds" in watch(model).explain()
    # One kind alone is a chain by its order.
    model = Named(vision_model=linear(4, 3), head=linear(6, 4))
    assert keys(model) == [("vision_model", "head")]


def test_a_table_after_other_layers_is_read_by_something_unknown() -> None:
    model = Named(encoder=linear(4, 3), segments=nn.Embedding(7, 4), lm_head=linear(9, 4))
    assert keys(model) == []


def test_an_mlp_before_the_attention_may_run_after_it() -> None:
    blocks = [Named(mlp=mlp(), attn=attention()) for _ in range(2)]
    found = keys(Named(first=linear(4, 3), layers=nn.Sequential(*blocks), last=linear(5, 4)))
    assert ("layers.0.mlp.fc1", "layers.0.mlp.fc2") in found
    assert not any(a.rpartition(".")[0] != b.rpartition(".")[0] for a, b in found)


def test_queries_and_keys_that_are_modules_are_no_chain() -> None:
    inside = Named(**{f"{r}_proj": Named(inner=Named(linear=linear(4, 4))) for r in "qkvo"})
    model = Named(before=linear(4, 3), attn=inside, mlp=mlp())
    assert keys(model) == [("mlp.fc1", "mlp.fc2")]
    assert "modules of several layers" in watch(model).explain()


def test_narrow_layers_around_a_block_are_in_no_order() -> None:
    model = Named(attn=attention(), mlp=mlp(), bottleneck=linear(4, 4))
    assert ("mlp.fc2", "bottleneck") not in keys(model)
    nested = Named(inner=attention(), output=linear(4, 4))
    model = Named(attention=nested, mlp=mlp(), bottleneck=linear(4, 4))
    assert ("mlp.fc2", "bottleneck") not in keys(model)
    # A convolution's block has no attention, and is one as it is registered.
    model = Named(first=linear(4, 3), bottleneck=linear(5, 4))
    assert keys(model) == [("first", "bottleneck")]


def test_lists_of_as_many_modules_may_take_turns() -> None:
    def entries(count: int) -> nn.ModuleList:
        return nn.ModuleList(nn.Sequential(linear(4, 4), linear(4, 4)) for _ in range(count))

    model = Named(embeddings=entries(2), blocks=entries(2), head=linear(9, 4))
    inside = [
        (f"{name}.{i}.0", f"{name}.{i}.1") for name in ("embeddings", "blocks") for i in (0, 1)
    ]
    assert keys(model) == inside
    assert "may take turns" in watch(model).explain()
    model = Named(embeddings=entries(1), blocks=entries(2), head=linear(9, 4))
    assert ("blocks.1.1", "head") in keys(model)


def test_a_config_of_layers_that_differ_does_not_tell_a_number() -> None:
    class Config:
        @property
        def num_key_value_heads(self) -> int:
            raise RuntimeError("a per-layer attribute")

    model = attention()
    model.config = Config()
    assert ("q_proj", "k_proj") in keys(model)
