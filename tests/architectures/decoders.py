"""Language models of the ``transformers`` package with one stack of decoder blocks."""

from __future__ import annotations

from typing import Any

from .blocks import (
    Attention,
    Feeder,
    fused,
    gated,
    heads_outside,
    serial,
    tokens,
)
from .catalogue import Example, architecture
from .truth import Truth

HEADS, KV_HEADS, LAYERS = 4, 2, 3
# No two sizes are the same where a mistake could chain by accident: 97 tokens, 48 wide, 4 heads of
# 10, 80 in the MLP.
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 80,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": KV_HEADS, "head_dim": 10}
OLD_SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "n_embd": 48,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_inner": 80,
    "n_positions": 33,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FUSED = ("query_key_value", "dense")
WIDE = ("dense_h_to_4h", "dense_4h_to_h")


def _llama_blocks(truth: Truth, prefix: str, before: list[Feeder]) -> list[Feeder]:
    for layer in range(LAYERS):
        at = f"{prefix}layers.{layer}."
        q, k, v, o = (truth.linear(f"{at}self_attn.{x}_proj.weight") for x in "qkvo")
        gate, up, down = (truth.linear(f"{at}mlp.{x}_proj.weight") for x in ("gate", "up", "down"))
        attention = Attention.separate(q, k, v, o, HEADS, KV_HEADS)
        before = serial(truth, before, attention, [gate, up], down)
    return before


def _like_llama(name: str, **changes: Any) -> Example:
    import transformers

    config = getattr(transformers, f"{name}Config" if name != "Gemma3" else "Gemma3TextConfig")
    model = getattr(transformers, f"{name}ForCausalLM")(config(**GROUPED, **changes))
    truth = Truth(model)
    last = _llama_blocks(truth, "model.", [truth.table("model.embed_tokens.weight")])
    truth.feeds(last, [truth.linear("lm_head.weight")])
    return Example(model, truth, (tokens(),))


@architecture("Llama", "transformers")
def llama() -> Example:
    return _like_llama("Llama")


@architecture("Qwen3", "transformers")
def qwen3() -> Example:
    return _like_llama("Qwen3")


@architecture("Gemma3", "transformers")
def gemma3() -> Example:
    return _like_llama("Gemma3")


@architecture("GPT-2", "transformers")
def gpt2() -> Example:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(**OLD_SIZES))
    truth = Truth(model)
    before: list[Feeder] = [truth.table(f"transformer.{x}.weight") for x in ("wte", "wpe")]
    for layer in range(LAYERS):
        at = f"transformer.h.{layer}."
        # Conv1D stores (inputs, outputs).
        qkv, o, up, down = (
            truth.linear(f"{at}{x}.weight", outputs=1, inputs=0)
            for x in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        )
        before = serial(truth, before, fused(qkv, o, HEADS), [up], down)
    truth.feeds(before, [truth.linear("lm_head.weight")])
    return Example(model, truth, (tokens(),))


@architecture("GPT-BigCode", "transformers")
def bigcode() -> Example:
    from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

    model = GPTBigCodeForCausalLM(GPTBigCodeConfig(**OLD_SIZES, multi_query=True))
    truth = Truth(model)
    before: list[Feeder] = [truth.table(f"transformer.{x}.weight") for x in ("wte", "wpe")]
    for layer in range(LAYERS):
        at = f"transformer.h.{layer}."
        qkv, o, up, down = (
            truth.linear(f"{at}{x}.weight")
            for x in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        )
        before = serial(truth, before, fused(qkv, o, HEADS, 1), [up], down)
    truth.feeds(before, [truth.linear("lm_head.weight")])
    return Example(model, truth, (tokens(),))


@architecture("OPT", "transformers")
def opt() -> Example:
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
    model = OPTForCausalLM(
        OPTConfig(**sizes, ffn_dim=80, max_position_embeddings=33, word_embed_proj_dim=36)
    )
    truth = Truth(model)
    at = "model.decoder."
    project_in, project_out = (truth.linear(f"{at}project_{x}.weight") for x in ("in", "out"))
    truth.feeds([truth.table(f"{at}embed_tokens.weight")], [project_in])
    before: list[Feeder] = [truth.table(f"{at}embed_positions.weight"), project_in]
    for layer in range(LAYERS):
        block = f"{at}layers.{layer}."
        q, k, v, o = (
            truth.linear(f"{block}self_attn.{x}_proj.weight") for x in ("q", "k", "v", "out")
        )
        up, down = (truth.linear(f"{block}fc{i}.weight") for i in (1, 2))
        before = serial(truth, before, Attention.separate(q, k, v, o, HEADS), [up], down)
    truth.feeds(before, [project_out])
    truth.feeds([project_out], [truth.linear("lm_head.weight")])
    return Example(model, truth, (tokens(),))


@architecture("BLOOM", "transformers")
def bloom() -> Example:
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(
        BloomConfig(vocab_size=97, hidden_size=48, n_layer=LAYERS, n_head=HEADS)
    )
    truth = Truth(model)
    before: list[Feeder] = [truth.table("transformer.word_embeddings.weight")]
    for layer in range(LAYERS):
        at = f"transformer.h.{layer}."
        qkv, o = (truth.linear(f"{at}self_attention.{x}.weight") for x in FUSED)
        up, down = (truth.linear(f"{at}mlp.{x}.weight") for x in WIDE)
        before = serial(truth, before, heads_outside(qkv, o, HEADS), [up], down)
    truth.feeds(before, [truth.linear("lm_head.weight")])
    return Example(model, truth, (tokens(),))


@architecture("MPT", "transformers")
def mpt() -> Example:
    from transformers import MptConfig, MptForCausalLM

    model = MptForCausalLM(
        MptConfig(
            vocab_size=97, d_model=48, n_layers=LAYERS, n_heads=HEADS, max_seq_len=33,
            expansion_ratio=2,
        )
    )  # fmt: skip
    truth = Truth(model)
    before: list[Feeder] = [truth.table("transformer.wte.weight")]
    for layer in range(LAYERS):
        at = f"transformer.blocks.{layer}."
        qkv, o, up, down = (
            truth.linear(f"{at}{x}.weight")
            for x in ("attn.Wqkv", "attn.out_proj", "ffn.up_proj", "ffn.down_proj")
        )
        before = serial(truth, before, fused(qkv, o, HEADS), [up], down)
    truth.feeds(before, [truth.linear("lm_head.weight")])
    return Example(model, truth, (tokens(),))


@architecture("Phi-3", "transformers")
def phi3() -> Example:
    from transformers import Phi3Config, Phi3ForCausalLM

    model = Phi3ForCausalLM(Phi3Config(**SIZES, num_key_value_heads=KV_HEADS))
    truth = Truth(model)
    before: list[Feeder] = [truth.table("model.embed_tokens.weight")]
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        qkv, o, gate_up, down = (
            truth.linear(f"{at}{x}_proj.weight")
            for x in ("self_attn.qkv", "self_attn.o", "mlp.gate_up", "mlp.down")
        )
        attention = fused(qkv, o, HEADS, KV_HEADS)
        before = serial(truth, before, attention, [gate_up], down, gated(gate_up))
    truth.feeds(before, [truth.linear("lm_head.weight")])
    return Example(model, truth, (tokens(),))
