"""Models of a known family: pairs by its preset, with or without its modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support.named_models import Named, attention, linear
from tests.support.paired import watch


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
