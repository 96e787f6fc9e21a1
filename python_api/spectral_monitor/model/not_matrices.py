"""Parameters of two and more dimensions that multiply nothing: told by the names they go by.

Biases that are kept per head, scales, tables that are added to attention scores, tokens that join
a sequence, and buffers that a state dict lists beside the parameters. Their shape is that of a
matrix, so nothing else tells them apart.
"""

from __future__ import annotations

import re
from functools import lru_cache

# Held against the last part of a parameter's name, in this order.
_LEAVES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (
            r"(.*_)?(relative|rel)_(attention|position|pos)_bias(_table)?|(attn|attention)_biases?",
            "relative positions: a table that is added to attention scores",
        ),
        # GPT-OSS's experts, the heads of Transformer-XL, and TransformerLens, whose b_Q is
        # (heads, d_head).
        (r"bias|.*_bias(es)?|bias_.*|b_([A-Z]|in|out|gate)", "a bias"),
        # The first scale below one weight, or of a block of them: FP8, GPTQ, AWQ, 4-bit.
        (
            r"(.*_)?scales?(_inv)?|.*_scale_.*|absmax|nested_absmax|quant_map|nested_quant_map|"
            r"q?zeros|zero_points?|.*_zero_point|scale_b",
            "scales, which are multiplied entry by entry",
        ),
        (r"(weight|lora)_(g|magnitude.*)|lora_magnitude_vector", "scales of rows or columns"),
        (
            r"gamma(_\d+)?|beta|layer_scale.*|ls\d?|gate_scales?|.*_scaler?|temperature",
            "scales, which are multiplied entry by entry",
        ),
        (
            r"[Aa]_logs?|dt_bias|time_(decay|first|faaaa|mix.*|maa|maa_[xwkvrg])",
            "decays of a recurrence, which are multiplied entry by entry",
        ),
        (
            r"(?!.*embed).*_tokens?(_?\d+)?|class_embedding|latents",
            "tokens that join the sequence: each row is a vector",
        ),
        (r"rel_pos(_[hwd])?|rel_embeddings?_[hw]", "relative positions: offsets, not a layer"),
    )
)

# Of a state dict, which does not tell buffers from parameters.
_BUFFERS = re.compile(
    r"rotary_(sin|cos)|(sin|cos)(_cached)?|inv_freq|freqs_cis|position_ids|token_type_ids|"
    r".*_index|.*mask|embed_avg|cluster_size|.*_integer|.*_decay|num_batches_tracked|running_(mean|var)|g_idx"
)

# Held against the name of the module that owns a ``weight``.
_OWNERS = re.compile(r"(.*_)?(relative|rel)_(attention|position|pos)_bias(_table)?")


def why_no_matrix(name: str, *, may_be_buffer: bool) -> str | None:
    """The reason, where the name of a parameter says that it is none; else ``None``.

    Args:
        name: qualified, ``layers.0.attn.b_Q``.
        may_be_buffer: it comes from a state dict.
    """
    *path, leaf = name.split(".")
    if leaf == "weight" and path and _OWNERS.fullmatch(path[-1]):
        return _LEAVES[0][1]
    if may_be_buffer and _BUFFERS.fullmatch(leaf):
        return "a buffer by its name"
    return _by_leaf(leaf)


@lru_cache(maxsize=1024)
def _by_leaf(leaf: str) -> str | None:
    return next((reason for pattern, reason in _LEAVES if pattern.fullmatch(leaf)), None)
