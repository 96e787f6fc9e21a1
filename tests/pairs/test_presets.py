"""Presets held against traces: what a family's flow says is what a forward pass does."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.pairs.flow.presets import FAMILIES, Family, family_of

import spectral_kernels as sk
from tests.architectures.catalogue import prepare
from tests.architectures.judge import places_met
from tests.architectures.truth import Truth

pytestmark = pytest.mark.skipif(
    find_spec("transformers") is None,
    reason="needs the extra [architectures]: transformers is not installed",
)

# No two sizes are the same where a mistake could chain by accident.
SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 80, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
SHORT = {**SIZES, "max_position_embeddings": 33}
MIXED = {**GROUPED, "num_experts_per_tok": 2}
ROUTED = {
    **MIXED, "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 20,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
LATENT = {
    **ROUTED, "num_key_value_heads": 4, "kv_lora_rank": 14, "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8, "v_head_dim": 9,
}  # fmt: skip
FALCON = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
OLD = {
    "vocab_size": 97, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 33,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
SEQUENCES = {
    "vocab_size": 97, "d_model": 48, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 72, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 2, "max_position_embeddings": 64,
}  # fmt: skip
T5 = {
    "vocab_size": 97, "d_model": 48, "d_kv": 10, "d_ff": 80, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip
IMAGE = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80,
    "image_size": 28, "patch_size": 7,
}  # fmt: skip

LIKE_LLAMA = (
    "Mistral", "Qwen2", "Gemma", "Gemma2", "SmolLM3", "Olmo", "Olmo2", "Olmo3", "Granite",
    "SeedOss", "Arcee", "Nemotron", "Ernie4_5", "Exaone4", "BitNet", "Apertus", "VaultGemma",
    "Glm", "Glm4", "Cohere", "Cohere2", "Starcoder2",
)  # fmt: skip
# (config, model, settings); the model is called like the config where nothing else is said.
TOKENS: list[tuple[str, str, dict[str, Any]]] = [
    *((name, f"{name}ForCausalLM", GROUPED) for name in LIKE_LLAMA),
    ("Llama", "LlamaForSequenceClassification", GROUPED),
    ("Ministral", "MinistralForCausalLM", {**GROUPED, "head_dim": 10}),
    ("HunYuanDenseV1", "HunYuanDenseV1ForCausalLM", {**GROUPED, "head_dim": 10}),
    ("StableLm", "StableLmForCausalLM", {**GROUPED, "partial_rotary_factor": 0.5}),
    ("StableLm", "StableLmForCausalLM",
     {**GROUPED, "partial_rotary_factor": 0.5, "use_parallel_residual": True}),
    ("Olmoe", "OlmoeForCausalLM", {**MIXED, "num_experts": 4}),
    ("Phimoe", "PhimoeForCausalLM", {**MIXED, "num_local_experts": 4}),
    ("GraniteMoe", "GraniteMoeForCausalLM", {**MIXED, "num_local_experts": 4}),
    ("HunYuanMoEV1", "HunYuanMoEV1ForCausalLM",
     {**GROUPED, "head_dim": 10, "num_experts": 4, "moe_topk": 2}),
    ("Ernie4_5_Moe", "Ernie4_5_MoeForCausalLM",
     {**GROUPED, "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1,
      "moe_intermediate_size": 20, "moe_layer_start_index": 1}),
    ("Glm4Moe", "Glm4MoeForCausalLM", ROUTED),
    ("Dots1", "Dots1ForCausalLM", ROUTED),
    ("DeepseekV2", "DeepseekV2ForCausalLM", {**LATENT, "q_lora_rank": 18}),
    ("DeepseekV2", "DeepseekV2ForCausalLM", {**LATENT, "q_lora_rank": None}),
    ("GPTNeoX", "GPTNeoXForCausalLM", {**SIZES, "use_parallel_residual": False}),
    *(("Falcon", "FalconForCausalLM",
       {**FALCON, "ffn_hidden_size": 80, "new_decoder_architecture": False,
        "multi_query": multi_query, "parallel_attn": parallel})
      for multi_query in (True, False) for parallel in (True, False)),
    ("GPTBigCode", "GPTBigCodeForCausalLM", {**OLD, "multi_query": False}),
    ("GPT2", "GPT2ForSequenceClassification", OLD),
    ("OpenAIGPT", "OpenAIGPTLMHeadModel", OLD),
    ("GPTNeo", "GPTNeoForCausalLM",
     {**SIZES, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}),
    ("Persimmon", "PersimmonForCausalLM", {**SIZES, "partial_rotary_factor": 0.5}),
    ("XGLM", "XGLMForCausalLM",
     {"vocab_size": 97, "d_model": 48, "ffn_dim": 80, "num_layers": 2, "attention_heads": 4}),
    ("BioGpt", "BioGptForCausalLM", SHORT),
    *(("Bert", f"Bert{what}", SHORT) for what in (
        "Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering",
        "ForPreTraining", "LMHeadModel")),
    *(("Electra", f"Electra{what}", {**SHORT, "embedding_size": 20}) for what in (
        "ForMaskedLM", "ForPreTraining", "ForSequenceClassification")),
    *(("Roberta", f"Roberta{what}", SHORT) for what in (
        "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")),
    ("Camembert", "CamembertForMaskedLM", SHORT),
    ("DistilBert", "DistilBertForSequenceClassification",
     {"vocab_size": 97, "dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 80}),
    ("T5", "T5EncoderModel", T5),
    ("CLIPText", "CLIPTextModelWithProjection", {**SHORT, "projection_dim": 30}),
]  # fmt: skip
PAIRS = [
    *((name, f"{name}ForConditionalGeneration", SEQUENCES)
      for name in ("MBart", "Pegasus", "M2M100", "Blenderbot")),
    ("Marian", "MarianMTModel", SEQUENCES),
    ("MT5", "MT5ForConditionalGeneration", T5),
    ("UMT5", "UMT5ForConditionalGeneration", T5),
]  # fmt: skip
IMAGES = [
    ("DeiT", "DeiTForImageClassification", IMAGE),
    ("ViT", "ViTModel", IMAGE),
    ("Dinov2", "Dinov2Model", {**IMAGE, "mlp_ratio": 2}),
    ("CLIPVision", "CLIPVisionModelWithProjection", {**IMAGE, "projection_dim": 30}),
]


def tokens(length: int) -> torch.Tensor:
    return torch.randint(3, 97, (2, length), generator=torch.Generator().manual_seed(0))


INPUTS: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
    "tokens": lambda: {"input_ids": tokens(11)},
    "pairs": lambda: {"input_ids": tokens(11), "decoder_input_ids": tokens(7)},
    "images": lambda: {"pixel_values": torch.randn(2, 3, 28, 28)},
}
CASES = [
    *(("tokens", *case) for case in TOKENS),
    *(("pairs", *case) for case in PAIRS),
    *(("images", *case) for case in IMAGES),
]


@pytest.mark.parametrize(
    ("inputs", "config", "model", "settings"), CASES,
    ids=[f"{model}-{i}" for i, (_, _, model, _) in enumerate(CASES)],
)  # fmt: skip
def test_a_preset_is_what_a_forward_pass_does(
    inputs: str, config: str, model: str, settings: dict[str, Any]
) -> None:
    prepare()
    transformers = importlib.import_module("transformers")
    torch.manual_seed(0)
    made = getattr(transformers, f"{config}Config")(**settings)
    built = getattr(transformers, model)(made).eval()
    truth = Truth(built)
    known = SpectralMonitor(built, reference=None)
    assert {pair.origin for pair in known.pairs} == {"preset"}
    trace = sk.trace(built, **INPUTS[inputs]())
    traced = SpectralMonitor(built, reference=None, pairs=trace)
    right, found = (
        {pair.key: places_met(pair, truth) for pair in monitor.pairs} for monitor in (traced, known)
    )
    every_right, every_found = (set().union(*places.values()) for places in (right, found))
    assert [key for key, places in found.items() if not places <= every_right] == []
    assert [key for key, places in right.items() if not places <= every_found] == []


def test_a_family_is_told_by_its_settings() -> None:
    serial = family_of("gpt_neox", {"use_parallel_residual": False})
    parallel = family_of("gpt_neox", {"use_parallel_residual": True})
    assert serial is not None
    assert parallel is not None
    assert serial is not parallel
    # A setting that is not there is not one of those that are asked for.
    assert family_of("gpt_neox", {}) is parallel
    assert family_of("of_nobody", {}) is None
    assert all(isinstance(family, Family) for family in FAMILIES)
