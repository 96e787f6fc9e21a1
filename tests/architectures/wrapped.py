"""Models inside other packages' wrappers: low-rank adapters, TransformerLens' bridge."""

from __future__ import annotations

from typing import Any

from .blocks import Attention, Feeder, serial, tokens
from .catalogue import Example, architecture
from .decoders import GROUPED, HEADS, KV_HEADS, LAYERS, OLD_SIZES, SIZES
from .truth import Truth


@architecture("Llama with LoRA", "transformers", "peft")
def lora() -> Example:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LoraConfig(r=5, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**GROUPED)), config)
    truth = Truth(model)
    top = "base_model.model."
    before: list[Feeder] = [truth.table(f"{top}model.embed_tokens.weight")]
    for layer in range(LAYERS):
        at = f"{top}model.layers.{layer}."
        q, v = (truth.linear(f"{at}self_attn.{x}_proj.base_layer.weight") for x in "qv")
        k, o = (truth.linear(f"{at}self_attn.{x}_proj.weight") for x in "ko")
        gate, up, down = (truth.linear(f"{at}mlp.{x}_proj.weight") for x in ("gate", "up", "down"))
        for role, base in (("q", q), ("v", v)):
            adapter = f"{at}self_attn.{role}_proj.lora_"
            low, high = (truth.linear(f"{adapter}{x}.default.weight") for x in "AB")
            truth.feeds(before, [low])
            truth.feeds([low], [high])
            written = {"q": q.out, "v": v.out, role: high.out}
            truth.attention(written["q"], k.out, written["v"], o.into, HEADS, KV_HEADS)
            assert len(base.out) == len(high.out)
        attention = Attention.separate(q, k, v, o, HEADS, KV_HEADS)
        before = serial(truth, before, attention, [gate, up], down)
    truth.feeds(before, [truth.linear(f"{top}lm_head.weight")])
    return Example(model, truth, (tokens(),))


def _bridge(model: Any) -> Any:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    return build_bridge_from_module(model, type(model).__name__, hf_config=model.config)


@architecture("TransformerLens, bridge to Llama", "transformers", "transformer_lens")
def bridge_to_llama() -> Example:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {**SIZES, "num_key_value_heads": KV_HEADS, "attn_implementation": "eager"}
    model = _bridge(LlamaForCausalLM(LlamaConfig(**sizes)))
    truth = Truth(model)
    inside = "_original_component"
    before: list[Feeder] = [truth.table(f"model.embed_tokens.{inside}.weight")]
    for layer in range(LAYERS):
        at = f"model.layers.{layer}.{inside}."
        q, k, v, o = (
            truth.linear(f"{at}self_attn.{inside}.{x}_proj.{inside}.weight") for x in "qkvo"
        )
        gate, up, down = (
            truth.linear(f"{at}mlp.{inside}.{x}_proj.{inside}.weight")
            for x in ("gate", "up", "down")
        )
        attention = Attention.separate(q, k, v, o, HEADS, KV_HEADS)
        before = serial(truth, before, attention, [gate, up], down)
    truth.feeds(before, [truth.linear(f"lm_head.{inside}.weight")])
    return Example(model, truth, (tokens(),))


@architecture("TransformerLens, bridge to GPT-2", "transformers", "transformer_lens")
def bridge_to_gpt2() -> Example:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = _bridge(GPT2LMHeadModel(GPT2Config(**OLD_SIZES, attn_implementation="eager")))
    truth = Truth(model)
    inside = "_original_component"
    before: list[Feeder] = [truth.table(f"transformer.{x}.{inside}.weight") for x in ("wte", "wpe")]
    for layer in range(LAYERS):
        at = f"transformer.h.{layer}.{inside}."
        # The bridge splits c_attn into copies that its forward uses in its place: three linear
        # layers, (outputs, inputs).
        q, k, v = (truth.linear(f"{at}attn.{x}.{inside}.weight") for x in "qkv")
        o, up, down = (
            truth.linear(f"{at}{x}.{inside}.weight", outputs=1, inputs=0)
            for x in ("attn.o", "mlp.in", "mlp.out")
        )
        before = serial(truth, before, Attention.separate(q, k, v, o, HEADS), [up], down)
    truth.feeds(before, [truth.linear(f"lm_head.{inside}.weight")])
    return Example(model, truth, (tokens(),))
