"""Which layers feed which in well-known families of models, as data.

From the forward methods of Hugging Face's transformers 5 and timm 1.0, and for older checkpoints
from the names that earlier versions had. The notation is that of `pairs.flow.language`; a
family is known by ``config.model_type``, or by package and class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from spectral_monitor.model.config import setting

# Parts of an attention's scores that are added to them or are looked up by distance.
ASIDE = frozenset({"relative_attention_bias", "rel_pos_h", "rel_pos_w", "rotary_emb"})


@dataclass(frozen=True, slots=True)
class Family:
    """Models whose layers feed each other in one way."""

    names: tuple[str, ...]
    """Values of ``config.model_type``, or ``package.Class``."""
    flow: str
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Setting -> values that it must have one of."""

    def fits(self, name: str, config: Any) -> bool:
        """Whether a model with this name and configuration is one of them."""
        return name in self.names and all(
            setting(config, key) in values for key, values in self.when.items()
        )


def family_of(name: str, config: Any) -> Family | None:
    """The first family that fits."""
    return next((family for family in _named(name) if family.fits(name, config)), None)


@cache
def _named(name: str) -> tuple[Family, ...]:
    # Asked for every module of a model, of which there may be tens of thousands.
    return tuple(family for family in FAMILIES if name in family.names)


_QKVO = "q=q_proj k=k_proj v=v_proj o=o_proj"
_QKV_OUT = "q=q_proj k=k_proj v=v_proj o=out_proj"
_GATED = "(gate_proj & up_proj > down_proj)"
_EXPERTS = (
    "mlp|block_sparse_moe(-gate|gate.weight & -gate.wg & -router & -router.layer"
    f" & experts=(gate_up_proj/gate,up > down_proj) & experts+{_GATED}"
    f" & experts+(w1 & w3 > w2) & -shared_expert_gate & shared_expert{_GATED}"
    f" & shared_experts{_GATED} & shared_mlp{_GATED} & {_GATED})"
)
_HEAD = "lm_head & score & classifier"


def _decoder(block: str, tables: str = "#embed_tokens", head: str = _HEAD) -> str:
    return f"{tables} > layers*({block}) > {head}"


_LLAMA = _decoder(f"self_attn{{{_QKVO}}} > mlp{_GATED}")
_MIXTURE = _decoder(f"self_attn{{{_QKVO}}} > {_EXPERTS}")
_LATENT = "q=q_proj q_a=q_a_proj q_b=q_b_proj kv_a=kv_a_proj_with_mqa kv_b=kv_b_proj o=o_proj"
_DEEPSEEK = _decoder(f"self_attn{{{_LATENT}}} > {_EXPERTS}")
_FUSED_GATED = "mlp(gate_up_proj/gate,up > down_proj)"

_H_TO_4H = "mlp(dense_h_to_4h > dense_4h_to_h)"
_QUERY_KEY_VALUE = "{{qkv=query_key_value o=dense layout={}}}"
_NEOX_ATTENTION = "attention" + _QUERY_KEY_VALUE.format("groups kv=all")
_NEOX_ENDS = ("#embed_in", f"embed_out & {_HEAD}")
_FALCON_ATTENTION = "self_attention" + _QUERY_KEY_VALUE
_GPT2_MLP = "mlp(c_fc > c_proj)"
_GPTJ_MLP = "mlp(fc_in > fc_out)"


def _blocks_of_h(block: str, tables: str = "#wte", blocks: str = "h") -> str:
    return f"{tables} > {blocks}*({block}) > {_HEAD} & qa_outputs"


_BERT_ATTENTION = "attention{q=self.query k=self.key v=self.value o=output.dense}"
_BERT_CROSS = "crossattention{q=self.query k=self.key v=self.value o=output.dense cross=yes}"
_BERT_HEADS = (
    "(pooler.dense > classifier & cls.seq_relationship)"
    " & cls.predictions(transform.dense > decoder) & qa_outputs"
    " & (generator_predictions.dense > generator_lm_head) & classifier(dense > out_proj)"
    " & discriminator_predictions(dense > dense_prediction)"
)
_BERT = (
    "embeddings(#word_embeddings & #token_type_embeddings & #position_embeddings"
    ") > embeddings_project > encoder(layer*("
    f"{_BERT_ATTENTION} > {_BERT_CROSS} > intermediate.dense > output.dense)) > {_BERT_HEADS}"
)
_ROBERTA_HEADS = (
    "pooler.dense & classifier & classifier(dense > out_proj) & lm_head(dense > decoder)"
    " & qa_outputs"
)
_DISTILBERT = (
    "embeddings(#word_embeddings & #position_embeddings) > transformer(layer*("
    "attention{q=q_lin k=k_lin v=v_lin o=out_lin} > ffn(lin1 > lin2)))"
    " > (vocab_transform > vocab_projector) & (pre_classifier > classifier) & qa_outputs"
)
_T5_MLP = "DenseReluDense(wi & wi_0 & wi_1 > wo)"
_T5 = (
    "#shared > encoder(block*(layer.0.SelfAttention{q=q k=k v=v o=o}"
    f" > layer.1.{_T5_MLP})) >> #shared > decoder(block*("
    "layer.0.SelfAttention{q=q k=k v=v o=o} > layer.1.EncDecAttention{q=q k=k v=v o=o cross=yes}"
    f" > layer.2.{_T5_MLP})) > lm_head"
)
_FC = "fc1 > fc2"
_CROSS = f"encoder_attn{{{_QKV_OUT} cross=yes}}"
_ENCODER_LAYER = f"layers*(self_attn{{{_QKV_OUT}}} > {_FC})"
_DECODER_LAYER = f"layers*(self_attn{{{_QKV_OUT}}} > {_CROSS} > {_FC})"
_BART = (
    f"encoder(#embed_tokens & #embed_positions > {_ENCODER_LAYER})"
    f" >> decoder(#embed_tokens & #embed_positions > {_DECODER_LAYER})"
    " > lm_head & classification_head(dense > out_proj)"
)
_WHISPER = (
    f"encoder((conv1 > conv2) & #embed_positions > {_ENCODER_LAYER})"
    f" >> decoder(#embed_tokens & #embed_positions > {_DECODER_LAYER}) > proj_out"
)
_OPT = (
    "decoder((#embed_tokens > project_in) & #embed_positions"
    f" > {_ENCODER_LAYER} > project_out) > {_HEAD}"
)
_CLIP_LAYERS = f"encoder(layers*(self_attn{{{_QKV_OUT}}} > mlp({_FC})))"
_CLIP_TEXT = f"embeddings(#token_embedding & #position_embedding) > {_CLIP_LAYERS}"
_CLIP_VISION = f"embeddings(patch_embedding & #position_embedding) > {_CLIP_LAYERS}"
_CLIP = (
    f"(text_model({_CLIP_TEXT}) > text_projection)"
    f" ~ (vision_model({_CLIP_VISION}) > visual_projection)"
)
_VIT_HEADS = "classifier & pooler.dense"
_VIT = (
    "embeddings(patch_embeddings.projection & #position_embeddings)"
    f" > layers*(attention{{{_QKVO}}} > mlp({_FC}))"
    " > encoder(layer*("
    "attention{q=attention.query k=attention.key v=attention.value o=output.dense}"
    f" > intermediate.dense > output.dense)) > {_VIT_HEADS}"
)
# Its classifier reads two vectors side by side: no neighbour.
_DINOV2 = (
    "embeddings(patch_embeddings.projection & #position_embeddings)"
    f" > encoder(layer*(attention{{{_QKVO}}} > mlp({_FC})))"
)
# The first rows of x_proj are the step's, as many as dt_proj reads; the others are B and C, which
# meet in the state. conv1d lets every channel pass; x, the step and the gate are multiplied.
_MAMBA = (
    "#embeddings > layers*(mixer(((in_proj/x, > ((x_proj/dt+ > dt_proj) & .)) & in_proj/,gate)"
    " > out_proj)) > lm_head"
)
_CONVOLUTIONS = "*(weight)"
_RESNET_BLOCK = f"(conv1 > conv2 > conv3 > (. & se(fc1 > fc2))) & downsample{_CONVOLUTIONS}"
_RESNET = (
    f"conv1 & conv1{_CONVOLUTIONS} > layer1*({_RESNET_BLOCK}) > layer2*({_RESNET_BLOCK})"
    f" > layer3*({_RESNET_BLOCK}) > layer4*({_RESNET_BLOCK}) > fc"
)
_CONVNEXT = (
    f"stem{_CONVOLUTIONS} > stages*(downsample{_CONVOLUTIONS} > blocks*("
    f"shortcut & (conv_dw > mlp({_FC})))) > head(pre_logits.fc > fc)"
)
_TIMM_LAYER = f"attn{{qkv=qkv o=proj layout=roles}} > mlp({_FC})"
_SWIN = f"patch_embed.proj > layers*(downsample.reduction%4 > blocks*({_TIMM_LAYER})) > head.fc"
_TIMM_VIT = f"patch_embed.proj & #pos_embed > blocks*({_TIMM_LAYER}) > head"
_TORCH_ATTENTION = (
    "qkv=in_proj_weight q=q_proj_weight k=k_proj_weight v=v_proj_weight o=out_proj layout=roles"
)
_TORCH_ENCODER_LAYER = f"self_attn{{{_TORCH_ATTENTION}}} > linear1 > linear2"
_TORCH_DECODER_LAYER = (
    f"self_attn{{{_TORCH_ATTENTION}}} > multihead_attn{{{_TORCH_ATTENTION} cross=yes}}"
    " > linear1 > linear2"
)
_TORCH_ENCODER = f"layers*({_TORCH_ENCODER_LAYER})"
_TORCH_DECODER = f"layers*({_TORCH_DECODER_LAYER})"
_EXCITE = "(. & se(conv_reduce > conv_expand))"
_EFFICIENTNET = (
    f"conv_stem > blocks*(*(conv_pwl?(conv_pw > conv_dw > {_EXCITE} > conv_pwl"
    f" : conv_dw > {_EXCITE} > conv_pw))) > conv_head > classifier"
)

FAMILIES: tuple[Family, ...] = (
    Family(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gemma3",
            "smollm3", "olmo", "olmo2", "olmo3", "granite", "ministral", "seed_oss", "arcee",
            "nemotron", "ernie4_5", "exaone4", "hunyuan_v1_dense", "bitnet", "apertus",
            "vaultgemma"), _LLAMA),
    Family(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "ernie4_5_moe", "glm4_moe",
            "dots1", "hunyuan_v1_moe", "granitemoe"), _MIXTURE),
    Family(("deepseek_v2", "deepseek_v3"), _DEEPSEEK),
    Family(("phi3",),
           _decoder(f"self_attn{{qkv=qkv_proj o=o_proj layout=roles}} > {_FUSED_GATED}")),
    Family(("glm", "glm4"), _decoder(f"self_attn{{{_QKVO}}} > {_FUSED_GATED}")),
    Family(("phi",), _decoder(
        f"self_attn{{q=q_proj k=k_proj v=v_proj o=dense}} & mlp({_FC})")),
    Family(("starcoder2",), _decoder(f"self_attn{{{_QKVO}}} > mlp(c_fc > c_proj)")),
    Family(("stablelm",), _LLAMA, {"use_parallel_residual": (False,)}),
    Family(("stablelm", "cohere", "cohere2"),
           _decoder(f"self_attn{{{_QKVO}}} & mlp{_GATED}")),
    Family(("gpt_neox",), _decoder(f"{_NEOX_ATTENTION} > {_H_TO_4H}", *_NEOX_ENDS),
           {"use_parallel_residual": (False,)}),
    Family(("gpt_neox",), _decoder(f"{_NEOX_ATTENTION} & {_H_TO_4H}", *_NEOX_ENDS)),
    Family(("persimmon",), _decoder(
        f"self_attn{_QUERY_KEY_VALUE.format('groups kv=all')} > {_H_TO_4H}")),
    Family(("xglm", "biogpt"), f"#embed_tokens & #embed_positions > {_ENCODER_LAYER}"
           f" > output_projection & {_HEAD}"),
    Family(("bloom",), _blocks_of_h(
        f"{_FALCON_ATTENTION.format('groups kv=all')} > {_H_TO_4H}", "#word_embeddings")),
    Family(("falcon",), _blocks_of_h(
        f"{_FALCON_ATTENTION.format('groups')} & {_H_TO_4H}", "#word_embeddings"),
        {"new_decoder_architecture": (True,)}),
    Family(("falcon",), _blocks_of_h(
        f"{_FALCON_ATTENTION.format('roles kv=1')} & {_H_TO_4H}", "#word_embeddings"),
        {"multi_query": (True,), "parallel_attn": (True,)}),
    Family(("falcon",), _blocks_of_h(
        f"{_FALCON_ATTENTION.format('roles kv=1')} > {_H_TO_4H}", "#word_embeddings"),
        {"multi_query": (True,), "parallel_attn": (False,)}),
    Family(("falcon",), _blocks_of_h(
        f"{_FALCON_ATTENTION.format('groups kv=all')} & {_H_TO_4H}", "#word_embeddings"),
        {"multi_query": (False,), "parallel_attn": (True,)}),
    Family(("falcon",), _blocks_of_h(
        f"{_FALCON_ATTENTION.format('groups kv=all')} > {_H_TO_4H}", "#word_embeddings"),
        {"multi_query": (False,), "parallel_attn": (False,)}),
    Family(("gpt2", "openai-gpt"), _blocks_of_h(
        f"attn{{qkv=c_attn q=q k=k v=v o=c_proj layout=roles}} > {_GPT2_MLP}",
        "#wte & #wpe & #tokens_embed & #positions_embed")),
    Family(("gpt_bigcode",), _blocks_of_h(
        f"attn{{qkv=c_attn o=c_proj layout=roles kv=1}} > {_GPT2_MLP}", "#wte & #wpe"),
        {"multi_query": (True,)}),
    Family(("gpt_bigcode",), _blocks_of_h(
        f"attn{{qkv=c_attn o=c_proj layout=groups kv=all}} > {_GPT2_MLP}", "#wte & #wpe"),
        {"multi_query": (False,)}),
    Family(("gpt_neo",), _blocks_of_h(
        f"attn.attention{{{_QKV_OUT}}} > {_GPT2_MLP}", "#wte & #wpe")),
    Family(("gptj",), _blocks_of_h(f"attn{{{_QKV_OUT}}} & {_GPTJ_MLP}")),
    Family(("codegen",), _blocks_of_h(
        f"attn{{qkv=qkv_proj o=out_proj layout=quarters}} & {_GPTJ_MLP}")),
    Family(("mpt",), _blocks_of_h(
        "attn{qkv=Wqkv o=out_proj layout=roles kv=all} > ffn(up_proj > down_proj)",
        blocks="blocks")),
    Family(("opt",), _OPT),
    Family(("bert", "electra"), _BERT),
    Family(("roberta", "xlm-roberta", "camembert"), _BERT.replace(_BERT_HEADS, _ROBERTA_HEADS)),
    Family(("distilbert",), _DISTILBERT),
    Family(("t5", "mt5", "umt5"), _T5),
    Family(("bart", "mbart", "pegasus", "marian", "m2m_100", "blenderbot"), _BART),
    Family(("whisper",), _WHISPER),
    Family(("clip",), _CLIP),
    Family(("clip_text_model",), f"{_CLIP_TEXT} > text_projection"),
    Family(("clip_vision_model",), f"{_CLIP_VISION} > visual_projection"),
    Family(("vit", "deit"), _VIT),
    Family(("dinov2",), _DINOV2),
    Family(("mamba", "falcon_mamba"), _MAMBA),
    Family(("torch.MultiheadAttention",), f"{{{_TORCH_ATTENTION}}}"),
    Family(("torch.TransformerEncoderLayer",), _TORCH_ENCODER_LAYER),
    Family(("torch.TransformerDecoderLayer",), _TORCH_DECODER_LAYER),
    Family(("torch.TransformerEncoder",), _TORCH_ENCODER),
    Family(("torch.TransformerDecoder",), _TORCH_DECODER),
    Family(("torch.Transformer",), f"encoder({_TORCH_ENCODER}) >> decoder({_TORCH_DECODER})"),
    Family(("timm.ResNet", "torchvision.ResNet"), _RESNET),
    Family(("timm.ConvNeXt",), _CONVNEXT),
    Family(("timm.SwinTransformer",), _SWIN),
    Family(("timm.VisionTransformer",), _TIMM_VIT),
    Family(("timm.EfficientNet",), _EFFICIENTNET),
)  # fmt: skip
