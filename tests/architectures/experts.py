"""Mixtures of experts and latent attention, of the ``transformers`` package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .blocks import Attention, Feeder, gated, tokens
from .catalogue import Example, architecture
from .decoders import GROUPED, HEADS, KV_HEADS, LAYERS, SIZES
from .truth import Truth, Weight

EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2}


def _experts(truth: Truth, at: str, before: Sequence[Feeder]) -> list[Feeder]:
    """Experts in two 3-D parameters, (experts, outputs, inputs), and their router."""
    truth.feeds(before, [truth.linear(f"{at}gate.weight")])
    ups = truth.stack(f"{at}experts.gate_up_proj", 1, 2)
    downs = truth.stack(f"{at}experts.down_proj", 1, 2)
    for gate_up, down in zip(ups, downs, strict=True):
        truth.feeds(before, [gate_up])
        truth.feeds(gated(gate_up), [down])
    return list(downs)


def _dense(truth: Truth, at: str, before: Sequence[Feeder]) -> list[Feeder]:
    gate, up, down = (truth.linear(f"{at}{x}_proj.weight") for x in ("gate", "up", "down"))
    truth.feeds(before, [gate, up])
    truth.feeds([gate, up], [down])
    return [down]


def _grouped(truth: Truth, at: str) -> Attention:
    q, k, v, o = (truth.linear(f"{at}self_attn.{x}_proj.weight") for x in "qkvo")
    return Attention.separate(q, k, v, o, HEADS, KV_HEADS)


def _attended(truth: Truth, before: Sequence[Feeder], attention: Attention) -> list[Feeder]:
    truth.feeds(before, attention.reads)
    attention.meet(truth)
    return [attention.o]


@architecture("Mixtral", "transformers")
def mixtral() -> Example:
    from transformers import MixtralConfig, MixtralForCausalLM

    model = MixtralForCausalLM(MixtralConfig(**GROUPED, num_local_experts=4, **EXPERTS))
    truth = Truth(model)
    before: list[Feeder] = [truth.table("model.embed_tokens.weight")]
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        o = _attended(truth, before, _grouped(truth, at))
        before = _experts(truth, f"{at}mlp.", o)
    truth.feeds(before, [truth.linear("lm_head.weight")])
    return Example(model, truth, (tokens(),))


@architecture("Qwen2-MoE", "transformers")
def qwen2_moe() -> Example:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    sizes = {"moe_intermediate_size": 20, "shared_expert_intermediate_size": 28, "num_experts": 4}
    config = Qwen2MoeConfig(**SIZES, num_key_value_heads=KV_HEADS, **sizes, **EXPERTS)
    model = Qwen2MoeForCausalLM(config)
    truth = Truth(model)
    before: list[Feeder] = [truth.table("model.embed_tokens.weight")]
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        o = _attended(truth, before, _grouped(truth, at))
        truth.feeds(o, [truth.linear(f"{at}mlp.shared_expert_gate.weight")])
        before = [
            *_experts(truth, f"{at}mlp.", o),
            *_dense(truth, f"{at}mlp.shared_expert.", o),
        ]
    truth.feeds(before, [truth.linear("lm_head.weight")])
    return Example(model, truth, (tokens(),))


@architecture("Qwen3-MoE", "transformers")
def qwen3_moe() -> Example:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    # Layer 1 has no experts.
    config = Qwen3MoeConfig(
        **GROUPED, **EXPERTS, moe_intermediate_size=20, num_experts=4, mlp_only_layers=[1]
    )
    model = Qwen3MoeForCausalLM(config)
    truth = Truth(model)
    before: list[Feeder] = [truth.table("model.embed_tokens.weight")]
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        o = _attended(truth, before, _grouped(truth, at))
        before = (_dense if layer == 1 else _experts)(truth, f"{at}mlp.", o)
    truth.feeds(before, [truth.linear("lm_head.weight")])
    return Example(model, truth, (tokens(),))


@architecture("DeepSeek-V3", "transformers")
def deepseek_v3() -> Example:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    ranks = {"q_lora_rank": 18, "kv_lora_rank": 14}
    heads = {"qk_nope_head_dim": 11, "qk_rope_head_dim": 6, "v_head_dim": 9}
    config = DeepseekV3Config(
        **SIZES, **ranks, **heads, **EXPERTS, num_key_value_heads=HEADS, moe_intermediate_size=20,
        n_shared_experts=2, n_routed_experts=4, n_group=2, topk_group=1, first_k_dense_replace=1,
    )  # fmt: skip
    model = DeepseekV3ForCausalLM(config)
    truth = Truth(model)
    before: list[Feeder] = [truth.table("model.embed_tokens.weight")]
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        o = [_latent_attention(truth, f"{at}self_attn.", before)]
        if layer == 0:
            before = _dense(truth, f"{at}mlp.", o)
            continue
        before = [
            *_experts(truth, f"{at}mlp.", o),
            *_dense(truth, f"{at}mlp.shared_experts.", o),
        ]
    truth.feeds(before, [truth.linear("lm_head.weight")])
    return Example(model, truth, (tokens(),))


def _latent_attention(truth: Truth, at: str, before: Sequence[Feeder]) -> Weight:
    plain, rotated, values, latent = 11, 6, 9, 14
    q_a, q_b, kv_a, kv_b, o = (
        truth.linear(f"{at}{x}.weight")
        for x in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
    )
    truth.feeds(before, [q_a, kv_a])
    truth.feeds([q_a], [q_b])
    truth.feeds([kv_a.out.part("latent", slice(latent))], [kv_b])
    rotated_keys = kv_a.out.part("rotated", slice(latent, None))
    for head in range(HEADS):
        first_q, first_kv = head * (plain + rotated), head * (plain + values)
        queries = q_b.out[first_q : first_q + plain]
        truth.meet_outputs(queries, kv_b.out[first_kv : first_kv + plain])
        rotated_queries = q_b.out[first_q + plain : first_q + plain + rotated]
        truth.meet_outputs(rotated_queries, rotated_keys)
        of_head = kv_b.out[first_kv + plain : first_kv + plain + values]
        truth.meet(of_head, o.into[head * values : (head + 1) * values])
    return o
