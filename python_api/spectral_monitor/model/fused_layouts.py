"""Which rows of a fused query-key-value weight belong to which head: the layouts that models have.

========  =================================================================================
roles     all queries, then all keys, then all values (GPT-2, MPT, Phi-3, `nn.MultiheadAttention`;
          with one key and value head Falcon-7B and GPT-BigCode)
groups    for each key and value head its queries, its key, its value; with as many of these as
          query heads, the roles of each head (GPT-NeoX, BLOOM, Falcon-40B)
quarters  four parts, each with its queries, then its *values*, then its keys (CodeGen, which was
          trained on four processors)
========  =================================================================================

The shape of a weight tells none of these from another: what a model has is said by its preset.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from spectral_monitor.model.matrix import Block

Range = tuple[int, int]
LAYOUTS = ("roles", "groups", "quarters")


def fused_attention_blocks(
    rows: int, heads: int, *, kv_heads: int | None = None, layout: str = "roles"
) -> tuple[Block, ...]:
    """The rows of a fused weight in their order, labelled ``q, head 2``; see `rows_by_head`."""
    blocks = [
        Block(f"{role}, head {head}", start, stop)
        for role, ranges in rows_by_head(layout, rows, heads, kv_heads).items()
        for head, (start, stop) in enumerate(ranges)
    ]
    return tuple(sorted(blocks, key=lambda block: block.start))


def rows_by_head(
    layout: str, rows: int, heads: int, kv_heads: int | None = None
) -> dict[str, list[Range]]:
    """Role "q", "k" or "v" -> rows ``start:stop`` of each of its heads.

    Args:
        layout: one of `LAYOUTS`.
        rows: of the weight, ``(heads + 2 * kv_heads) * head_size``.
        heads: query heads.
        kv_heads: key and value heads where they are fewer (grouped queries).

    Raises:
        ValueError: an unknown layout, or rows that do not divide into the heads.
    """
    kv = heads if kv_heads is None else kv_heads
    size, rest = divmod(rows, heads + 2 * kv)
    if rest or not size:
        raise ValueError(f"{rows} rows do not divide into {heads} query and 2 x {kv} other heads")
    if layout != "roles" and (heads % kv or (layout == "quarters" and (kv != heads or heads % 4))):
        raise ValueError(f"{heads} query and {kv} other heads have no layout {layout!r}")
    ranges: dict[str, list[Range]] = {"q": [], "k": [], "v": []}
    for role, count in _runs(layout, heads, kv):
        start = sum(len(sizes) for sizes in ranges.values()) * size
        ranges[role] += [(start + i * size, start + (i + 1) * size) for i in range(count)]
    return ranges


def _runs(layout: str, heads: int, kv: int) -> Iterator[tuple[str, int]]:
    """(role, how many heads of it follow each other), in the order of the rows."""
    if layout == "roles":
        return iter((("q", heads), ("k", kv), ("v", kv)))
    if layout == "groups":
        return itertools.chain.from_iterable([(("q", heads // kv), ("k", 1), ("v", 1))] * kv)
    if layout == "quarters":
        return itertools.chain.from_iterable([[(role, heads // 4) for role in "qvk"]] * 4)
    raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
