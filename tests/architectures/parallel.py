"""Decoders of the ``transformers`` package whose attention and MLP stand side by side."""

from __future__ import annotations

from typing import Any

from .blocks import Attention, Feeder, fused, heads_outside, parallel, tokens
from .catalogue import Example, architecture
from .decoders import FUSED, HEADS, KV_HEADS, LAYERS, OLD_SIZES, SIZES, WIDE
from .truth import Truth


@architecture("GPT-NeoX", "transformers")
def neox() -> Example:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    model = GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES))
    truth = Truth(model)
    before: list[Feeder] = [truth.table("gpt_neox.embed_in.weight")]
    for layer in range(LAYERS):
        at = f"gpt_neox.layers.{layer}."
        qkv, o = (truth.linear(f"{at}attention.{x}.weight") for x in FUSED)
        up, down = (truth.linear(f"{at}mlp.{x}.weight") for x in WIDE)
        before = parallel(truth, before, heads_outside(qkv, o, HEADS), [up], down)
    truth.feeds(before, [truth.linear("lm_head.weight")])
    return Example(model, truth, (tokens(),))


def _falcon(**changes: Any) -> Example:
    from transformers import FalconConfig, FalconForCausalLM

    sizes = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
    model = FalconForCausalLM(FalconConfig(**sizes, ffn_hidden_size=80, **changes))
    truth = Truth(model)
    before: list[Feeder] = [truth.table("transformer.word_embeddings.weight")]
    for layer in range(LAYERS):
        at = f"transformer.h.{layer}."
        qkv, o = (truth.linear(f"{at}self_attention.{x}.weight") for x in FUSED)
        up, down = (truth.linear(f"{at}mlp.{x}.weight") for x in WIDE)
        grouped = changes["new_decoder_architecture"]
        attention = heads_outside(qkv, o, HEADS, KV_HEADS) if grouped else fused(qkv, o, HEADS, 1)
        before = parallel(truth, before, attention, [up], down)
    truth.feeds(before, [truth.linear("lm_head.weight")])
    return Example(model, truth, (tokens(),))


@architecture("Falcon 7B", "transformers")
def falcon_7b() -> Example:
    return _falcon(new_decoder_architecture=False, multi_query=True, parallel_attn=True)


@architecture("Falcon 40B", "transformers")
def falcon_40b() -> Example:
    return _falcon(new_decoder_architecture=True, num_kv_heads=KV_HEADS)


@architecture("Phi", "transformers")
def phi() -> Example:
    from transformers import PhiConfig, PhiForCausalLM

    model = PhiForCausalLM(PhiConfig(**SIZES, num_key_value_heads=KV_HEADS))
    truth = Truth(model)
    before: list[Feeder] = [truth.table("model.embed_tokens.weight")]
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        q, k, v, o = (
            truth.linear(f"{at}self_attn.{x}.weight")
            for x in ("q_proj", "k_proj", "v_proj", "dense")
        )
        up, down = (truth.linear(f"{at}mlp.fc{i}.weight") for i in (1, 2))
        attention = Attention.separate(q, k, v, o, HEADS, KV_HEADS)
        before = parallel(truth, before, attention, [up], down)
    truth.feeds(before, [truth.linear("lm_head.weight")])
    return Example(model, truth, (tokens(),))


def _like_gptj(name: str, **changes: Any) -> tuple[Any, Truth]:
    import transformers

    config = getattr(transformers, f"{name}Config")(**OLD_SIZES, rotary_dim=6, **changes)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    return model, Truth(model)


@architecture("GPT-J", "transformers")
def gptj() -> Example:
    model, truth = _like_gptj("GPTJ")
    before: list[Feeder] = [truth.table("transformer.wte.weight")]
    for layer in range(LAYERS):
        at = f"transformer.h.{layer}."
        q, k, v, o = (truth.linear(f"{at}attn.{x}_proj.weight") for x in ("q", "k", "v", "out"))
        up, down = (truth.linear(f"{at}mlp.fc_{x}.weight") for x in ("in", "out"))
        before = parallel(truth, before, Attention.separate(q, k, v, o, HEADS), [up], down)
    truth.feeds(before, [truth.linear("lm_head.weight")])
    return Example(model, truth, (tokens(),))


@architecture("CodeGen", "transformers")
def codegen() -> Example:
    model, truth = _like_gptj("CodeGen")
    before: list[Feeder] = [truth.table("transformer.wte.weight")]
    for layer in range(LAYERS):
        at = f"transformer.h.{layer}."
        qkv, o = (truth.linear(f"{at}attn.{x}_proj.weight") for x in ("qkv", "out"))
        up, down = (truth.linear(f"{at}mlp.fc_{x}.weight") for x in ("in", "out"))
        # Made for four devices: each has the queries, values and keys of a quarter of the heads,
        # here one.
        attention = heads_outside(qkv, o, HEADS, order="qvk")
        before = parallel(truth, before, attention, [up], down)
    truth.feeds(before, [truth.linear("lm_head.weight")])
    return Example(model, truth, (tokens(),))
