"""Attention of projected queries to projected keys, with the masks of ``nn.MultiheadAttention``.

N entries of a batch, h heads of d numbers, L queries, S keys, of which the last ``extra`` are not
the caller's: no mask speaks of them, and every query sees them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Masks(NamedTuple):
    """What hides keys: bool, True where hidden, or numbers that are added to the scores.

    ``attn_mask`` (L, S - extra) or (N h, L, S - extra); ``key_padding_mask`` (N, S - extra);
    ``is_causal``: a hint that attn_mask is the causal one.
    """

    attn_mask: Tensor | None
    key_padding_mask: Tensor | None
    is_causal: bool


def attend(q: Tensor, k: Tensor, v: Tensor, masks: Masks, extra: int, dropout: float) -> Tensor:
    """Return softmax(q k^T / sqrt(d) + mask) v (N, h, L, d) for q (N, h, L, d), k, v (N, h, S, d).

    Dropout strikes the weights, which are not stored.

    Raises:
        TypeError: a mask that is neither bool nor floating.
        ValueError: a mask of another shape.
    """
    # The hint saves the mask where nothing else is to be masked.
    causal = masks.is_causal and masks.key_padding_mask is None and extra == 0
    mask = None if causal else _merged(masks, q, k.shape[-2] - extra, extra)
    return functional.scaled_dot_product_attention(q, k, v, mask, dropout, causal)


def attend_with_weights(
    q: Tensor, k: Tensor, v: Tensor, masks: Masks, extra: int, dropout: float
) -> tuple[Tensor, Tensor]:
    """Return the same as `attend` and the weights (N, h, L, S), after dropout."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    mask = _merged(masks, q, k.shape[-2] - extra, extra)
    if mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, dim=-1)
    if dropout > 0:
        weights = functional.dropout(weights, dropout)
    return weights @ v, weights


def check_inputs(query: Tensor, key: Tensor, value: Tensor, batch_first: bool) -> None:
    """Raise ValueError unless the three are dense and of sizes that belong together."""
    if query.is_nested or key.is_nested or value.is_nested:
        raise ValueError("query, key or value is a nested tensor; expected dense ones with masks")
    batch = 0 if batch_first else 1
    fits = query.dim() in (2, 3) and key.dim() == value.dim() == query.dim()
    fits = fits and key.shape[:-1] == value.shape[:-1]
    if not fits or (query.dim() == 3 and query.shape[batch] != key.shape[batch]):
        forms = ["(N, L, d), (N, S, kdim), (N, S, vdim)", "(L, N, d), (S, N, kdim), (S, N, vdim)"]
        raise ValueError(
            f"query is {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}; "
            f"expected {forms[batch]} with batch_first={batch_first}, or all without N"
        )


def _merged(masks: Masks, q: Tensor, S: int, extra: int) -> Tensor | None:
    """Return the sum of both masks, to be added to scores (N, h, L, S + extra), or None."""
    N, heads, L, _ = q.shape
    total = None
    if masks.attn_mask is not None:
        total = _additive("attn_mask", masks.attn_mask, ((L, S), (N * heads, L, S)), q.dtype)
        total = total.reshape(N, heads, L, S) if total.dim() == 3 else total.expand(1, 1, L, S)
    if masks.key_padding_mask is not None:
        hidden = _additive("key_padding_mask", masks.key_padding_mask, ((N, S),), q.dtype)
        hidden = hidden[:, None, None, :]
        total = hidden if total is None else total + hidden
    return total if total is None or extra == 0 else functional.pad(total, (0, extra))


def _additive(
    name: str, mask: Tensor, shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype
) -> Tensor:
    if tuple(mask.shape) not in shapes:
        expected = " or ".join(str(shape) for shape in shapes)
        raise ValueError(f"{name} is {tuple(mask.shape)}; expected {expected}")
    if mask.is_floating_point():
        return mask.to(dtype)
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} has dtype {mask.dtype}; expected bool or a floating dtype")
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
