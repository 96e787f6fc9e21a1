"""Encoders, and encoders with decoders, of the ``transformers`` package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .blocks import Attention, Feeder, image, serial, tokens
from .catalogue import Example, architecture
from .decoders import HEADS, LAYERS, SIZES
from .truth import Side, Truth, Weight


@architecture("BERT", "transformers")
def bert() -> Example:
    from transformers import BertConfig, BertForMaskedLM

    model = BertForMaskedLM(BertConfig(**SIZES, max_position_embeddings=33))
    truth = Truth(model)
    kinds = ("word", "position", "token_type")
    before: list[Feeder] = [truth.table(f"bert.embeddings.{x}_embeddings.weight") for x in kinds]
    for layer in range(LAYERS):
        at = f"bert.encoder.layer.{layer}."
        q, k, v, o, up, down = (
            truth.linear(f"{at}{x}.weight")
            for x in (
                *(f"attention.self.{role}" for role in ("query", "key", "value")),
                *("attention.output.dense", "intermediate.dense", "output.dense"),
            )
        )
        before = serial(truth, before, Attention.separate(q, k, v, o, HEADS), [up], down)
    transform = truth.linear("cls.predictions.transform.dense.weight")
    truth.feeds(before, [transform])
    truth.feeds([transform], [truth.linear("cls.predictions.decoder.weight")])
    return Example(model, truth, (tokens(),))


@architecture("DistilBERT", "transformers")
def distilbert() -> Example:
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    config = DistilBertConfig(
        vocab_size=97, dim=48, n_layers=LAYERS, n_heads=HEADS, hidden_dim=80,
        max_position_embeddings=33,
    )  # fmt: skip
    model = DistilBertForMaskedLM(config)
    truth = Truth(model)
    tables = ("word", "position")
    before: list[Feeder] = [
        truth.table(f"distilbert.embeddings.{x}_embeddings.weight") for x in tables
    ]
    for layer in range(LAYERS):
        at = f"distilbert.transformer.layer.{layer}."
        q, k, v, o = (truth.linear(f"{at}attention.{x}_lin.weight") for x in ("q", "k", "v", "out"))
        up, down = (truth.linear(f"{at}ffn.lin{i}.weight") for i in (1, 2))
        before = serial(truth, before, Attention.separate(q, k, v, o, HEADS), [up], down)
    transform = truth.linear("vocab_transform.weight")
    truth.feeds(before, [transform])
    truth.feeds([transform], [truth.linear("vocab_projector.weight")])
    return Example(model, truth, (tokens(),))


def _attention(truth: Truth, at: str, names: str | Sequence[str]) -> Attention:
    q, k, v, o = (truth.linear(f"{at}{name}.weight") for name in names)
    return Attention.separate(q, k, v, o, HEADS)


_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


def _crossed(
    truth: Truth, before: Sequence[Feeder], memory: Sequence[Feeder], attention: Attention
) -> list[Feeder]:
    """Queries read the decoder, keys and values the encoder."""
    query, *rest = attention.reads
    truth.feeds(before, [query])
    truth.feeds(memory, rest)
    attention.meet(truth)
    return [attention.o]


def _attended(truth: Truth, before: Sequence[Feeder], attention: Attention) -> list[Feeder]:
    truth.feeds(before, attention.reads)
    attention.meet(truth)
    return [attention.o]


def _mlp(
    truth: Truth, before: Sequence[Feeder], up: Sequence[Weight], down: Weight
) -> list[Feeder]:
    truth.feeds(before, up)
    truth.feeds(up, [down])
    return [down]


@architecture("T5", "transformers")
def t5() -> Example:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=97, d_model=48, d_kv=10, d_ff=80, num_layers=LAYERS, num_heads=HEADS,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    truth = Truth(model)

    def mlp(at: str, before: Sequence[Feeder]) -> list[Feeder]:
        gate, up, down = (
            truth.linear(f"{at}DenseReluDense.{x}.weight") for x in ("wi_0", "wi_1", "wo")
        )
        return _mlp(truth, before, [gate, up], down)

    memory: list[Feeder] = [truth.table("shared.weight")]
    for layer in range(LAYERS):
        at = f"encoder.block.{layer}.layer."
        memory = _attended(truth, memory, _attention(truth, f"{at}0.SelfAttention.", "qkvo"))
        memory = mlp(f"{at}1.", memory)
    before: list[Feeder] = [truth.table("shared.weight")]
    for layer in range(LAYERS):
        at = f"decoder.block.{layer}.layer."
        before = _attended(truth, before, _attention(truth, f"{at}0.SelfAttention.", "qkvo"))
        cross = _attention(truth, f"{at}1.EncDecAttention.", "qkvo")
        before = mlp(f"{at}2.", _crossed(truth, before, memory, cross))
    truth.feeds(before, [truth.linear("lm_head.weight")])
    inputs = {"input_ids": tokens(), "decoder_input_ids": tokens(length=7, seed=1)}
    return Example(model, truth, kwargs=inputs)


def _blocks_of_bart(
    truth: Truth, at: str, before: list[Feeder], memory: list[Feeder] | None = None
) -> list[Feeder]:
    """Encoder blocks, or with ``memory`` decoder blocks, of BART and Whisper."""
    for layer in range(LAYERS):
        block = f"{at}.layers.{layer}."
        attention = _attention(truth, f"{block}self_attn.", _PROJECTIONS)
        before = _attended(truth, before, attention)
        if memory is not None:
            cross = _attention(truth, f"{block}encoder_attn.", _PROJECTIONS)
            before = _crossed(truth, before, memory, cross)
        up, down = (truth.linear(f"{block}fc{i}.weight") for i in (1, 2))
        before = _mlp(truth, before, [up], down)
    return before


_BART: dict[str, Any] = {
    "vocab_size": 97,
    "d_model": 48,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 72,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}


@architecture("BART", "transformers")
def bart() -> Example:
    from transformers import BartConfig, BartForConditionalGeneration

    model = BartForConditionalGeneration(BartConfig(**_BART, max_position_embeddings=33))
    truth = Truth(model)
    memory = _blocks_of_bart(truth, "model.encoder", _tables(truth, "model.encoder"))
    before = _blocks_of_bart(truth, "model.decoder", _tables(truth, "model.decoder"), memory)
    truth.feeds(before, [truth.linear("lm_head.weight")])
    inputs = {"input_ids": tokens(), "decoder_input_ids": tokens(length=7, seed=1)}
    return Example(model, truth, kwargs=inputs)


def _tables(truth: Truth, at: str) -> list[Feeder]:
    return [truth.table(f"{at}.embed_{x}.weight") for x in ("tokens", "positions")]


@architecture("Whisper", "transformers")
def whisper() -> Example:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration(
        WhisperConfig(**_BART, num_mel_bins=20, max_source_positions=30, max_target_positions=33)
    )
    truth = Truth(model)
    at = "model.encoder"
    first, second = (truth.conv(f"{at}.conv{i}.weight") for i in (1, 2))
    truth.feeds([first], [second])
    memory = _blocks_of_bart(truth, at, [second, truth.table(f"{at}.embed_positions.weight")])
    before = _blocks_of_bart(truth, "model.decoder", _tables(truth, "model.decoder"), memory)
    truth.feeds(before, [truth.linear("proj_out.weight")])
    mels = torch.randn(2, 20, 60, generator=torch.Generator().manual_seed(0))
    inputs = {"input_features": mels, "decoder_input_ids": tokens(length=7, seed=1)}
    return Example(model, truth, kwargs=inputs)


@architecture("CLIP", "transformers")
def clip() -> Example:
    from transformers import CLIPConfig, CLIPModel

    sizes = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    text = {
        **sizes, "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80,
        "max_position_embeddings": 33, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        **sizes, "hidden_size": 40, "intermediate_size": 72, "image_size": 28, "patch_size": 7
    }  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=36))
    truth = Truth(model)
    projections: list[Weight] = []
    at = "embeddings."
    before: dict[str, list[Feeder]] = {
        "text": [
            truth.table(f"text_model.{at}{x}_embedding.weight") for x in ("token", "position")
        ],
        "vision": [
            truth.conv(f"vision_model.{at}patch_embedding.weight"),
            truth.table(f"vision_model.{at}position_embedding.weight"),
        ],
    }
    for side, projection in (("text", "text"), ("vision", "visual")):
        for layer in range(LAYERS):
            block = f"{side}_model.encoder.layers.{layer}."
            attention = _attention(truth, f"{block}self_attn.", _PROJECTIONS)
            up, down = (truth.linear(f"{block}mlp.fc{i}.weight") for i in (1, 2))
            before[side] = serial(truth, before[side], attention, [up], down)
        projections.append(truth.linear(f"{projection}_projection.weight"))
        truth.feeds(before[side], [projections[-1]])
    # Every text is multiplied with every image.
    truth.meet_outputs(projections[0].out, projections[1].out)
    return Example(model, truth, kwargs={"input_ids": tokens(), "pixel_values": image()})


@architecture("ViT", "transformers")
def vit() -> Example:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {key: value for key, value in SIZES.items() if not key.endswith(("_id", "vocab_size"))}
    config = ViTConfig(**sizes, image_size=28, patch_size=7, num_labels=10)
    model = ViTForImageClassification(config)
    truth = Truth(model)
    before: list[Side | Weight] = [
        truth.conv("vit.embeddings.patch_embeddings.projection.weight"),
        truth.table("vit.embeddings.position_embeddings"),
    ]
    for layer in range(LAYERS):
        at = f"vit.layers.{layer}."
        attention = _attention(truth, f"{at}attention.", [f"{x}_proj" for x in "qkvo"])
        up, down = (truth.linear(f"{at}mlp.fc{i}.weight") for i in (1, 2))
        before = serial(truth, before, attention, [up], down)
    truth.feeds(before, [truth.linear("classifier.weight")])
    return Example(model, truth, (image(),))
