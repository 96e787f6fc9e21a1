"""The order of layers behind names that were sorted by the alphabet.

Files of tensors (safetensors, for one) list their names alphabetically: ``h.10`` before ``h.2``,
an output projection before the queries, ``lm_head`` before ``model``. A module, or the state dict
that it gave, lists them as the layers follow each other, and is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

REORDERED = (
    "names came in alphabetical order: layers were put in the order of their numbers, and within a "
    "block by their usual roles (embeddings first; queries, keys, values, output; gate, up, down; "
    "heads last). Give the mapping in the model's own order where it is another"
)

_MIDDLE = 50

# What comes earlier or later than its neighbours by what it is called, among the children of one
# module; whatever fits none is in the middle.
_ROLES: tuple[tuple[re.Pattern[str], int], ...] = tuple(
    (re.compile(pattern), rank)
    for rank, pattern in (
        (10, r"embed(s|ding|dings|der|_in|_tokens|_positions)?|emb|.*_embed(ding|dings)?|wte|wpe|"
             r"tok_.*|shared|stem|conv_stem|patch_embed.*|inc|conv_in|w_e|w_pos|input.*_embed.*"),
        (12, r"feature_extractor"),
        (13, r"feature_projection"),
        (20, r"encoder|downs?\d*|down_blocks|text_model|vision_model"),
        (25, r"mid|mid_block|bottleneck|bridge"),
        (30, r"decoder|ups?\d*|up_blocks|self|in_proj|in_proj_weight"),
        (31, r"q|q_.*|query.*|qkv.*|wq|w_q|wqkv|to_q|c_attn|w_pack|in_proj_qkv.*"),
        (32, r"k|k_.*|key|wk|w_k|to_k|kv_.*|kv"),
        (33, r"v|v_.*|value|wv|w_v|to_v"),
        (35, r"attn|attention|self_attn|self_attention|selfattention|mixer|attn1"),
        (40, r"conv1d"),
        (42, r"x_proj"),
        (43, r"dt_proj"),
        (44, r"conv_reduce"),
        (45, r"conv_dw"),
        (45, r"cross_attn|encoder_attn|crossattention|cross_attention|encdecattention|attn2"),
        (46, r"se"),
        (51, r"gate|router"),
        (52, r"gate_proj|w1|wi_0|linear_1|gate_up_proj|w_gate"),
        (53, r"up_proj|w3|wi_1|w_in|fc_in|dense_h_to_4h|wi|c_fc"),
        (54, r"intermediate"),
        (56, r"mlp|ffn|feed_forward|densereludense|block_sparse_moe|experts|shared_experts?"),
        (66, r"fc|pooler"),
        (70, r"o|o_.*|out|conv_pwl|out_proj.*|output|wo|w_o|to_out|proj|c_proj|dense|w2|down_proj|"
             r"w_out|fc_out|dense_4h_to_h|w_down"),
        (90, r"(lm_|.*_)?head|classifier|cls|score|embed_out|unembed|outc|conv_out|logits|w_u|"
             r"qa_outputs|output_projection|final.*"),
    )
)  # fmt: skip
_SIDE = re.compile(r"downsample|shortcut|skip(_connection)?")
_RECURRENT = re.compile(r"weight_(ih|hh|hr)_l(\d+)(_reverse|)")
_GATED = ("ih", "hh", "hr")
_DIGITS = re.compile(r"(\d+)")


@dataclass(slots=True)
class _Node:
    names: list[str] = field(default_factory=list)
    children: dict[str, _Node] = field(default_factory=dict)


def natural_order(names: Sequence[str]) -> list[str] | None:
    """The names in the order of the layers, or None where the order given may stand.

    It may unless it is that of the alphabet, or numbers of one list are out of order.
    """
    if list(names) != sorted(names) and not _is_disordered(names):
        return None
    root = _Node()
    for name in names:
        node = root
        for part in name.split("."):
            node = node.children.setdefault(part, _Node())
        node.names.append(name)
    ordered = list(_sorted(root))
    return None if ordered == list(names) else ordered


def _is_disordered(names: Iterable[str]) -> bool:
    """Whether ``h.10`` comes before ``h.2`` somewhere."""
    last: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        for depth, part in enumerate(parts):
            if part.isdecimal():
                path = ".".join(parts[:depth])
                number = int(part)
                # A list that is met again is that of a module with two names.
                if number < last.get(path, -1) and number not in (0, last[path]):
                    return True
                last[path] = number
    return False


def _sorted(node: _Node) -> Iterable[str]:
    yield from node.names
    names = node.children.keys()
    for part in sorted(names, key=lambda part: (_rank(part, names), *_natural(part))):
        yield from _sorted(node.children[part])


def _rank(part: str, siblings: Iterable[str]) -> int:
    lower = part.lower()
    if _SIDE.fullmatch(lower):
        # Beside convolutions it is the way around them, else what stands before a stage.
        return 80 if any(name.startswith("conv") for name in siblings) else 45
    if lower == "conv_pw" and "conv_pwl" in siblings:
        return 44  # It widens, and the depthwise one follows.
    if lower == "embed_positions" and any(name.startswith("conv") for name in siblings):
        return _MIDDLE  # Added to what convolutions make of the input (Whisper).
    return next((rank for pattern, rank in _ROLES if pattern.fullmatch(lower)), _MIDDLE)


def _natural(part: str) -> tuple[tuple[int, int, str], ...]:
    """Numbers by their size, other pieces by the alphabet; of a recurrent layer, its weights."""
    recurrent = _RECURRENT.fullmatch(part)
    if recurrent is not None:
        role, layer, direction = recurrent.groups()
        return (1, 0, "weight"), (0, int(layer), ""), (1, 0, f"{direction} {_GATED.index(role)}")
    pieces = (piece for piece in _DIGITS.split(part) if piece)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in pieces)
