"""Multi-head attention whose projections are trained products U Sigma Vh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from spectral_monitor.decomposed.layers.layer import uninitialised
from spectral_monitor.decomposed.layers.linear import DecomposedLinear
from spectral_monitor.decomposed.layers.masked_attention import (
    Masks,
    attend,
    attend_with_weights,
    check_inputs,
)
from spectral_monitor.decomposed.layers.plain import check_source
from spectral_monitor.decomposed.layers.ranks import Rank
from torch import Tensor, nn
from torch.nn import functional

# What nn.MultiheadAttention keeps of its arguments.
_OPTIONS = ("embed_dim", "num_heads", "dropout", "add_zero_attn", "kdim", "vdim", "batch_first")


class DecomposedMultiheadAttention(nn.Module):
    """In place of ``nn.MultiheadAttention``, with the same arguments and results.

    The input projection is one decomposed layer ``in_proj`` from d to 3d, as the fused projection
    of "Decomposed Learning and Grokking" (anonymous, under review; section 5.3); where keys or
    values have sizes of their own it is three, ``q_proj``, ``k_proj`` and ``v_proj``. The output
    projection is ``out_proj``.

    Args:
        embed_dim: d, as in the dense layer, and so are ``num_heads``, ``dropout``, ``bias``,
            ``add_bias_kv``, ``add_zero_attn``, ``kdim``, ``vdim`` and ``batch_first``.
        rank: of every projection, as ``resolve_rank`` reads it for each; the full rank if None.
        device: where the parameters are; not the meta device.
        dtype: of the parameters: float16, bfloat16, float32 or float64.

    The factors are the SVD of what the dense layer would draw, from the same random numbers.
    ``forward`` forms no weight. ``nn.TransformerEncoderLayer``, in evaluation without gradients,
    does not call it: its fused kernel asks for the weights, and ``in_proj_weight`` and
    ``out_proj.weight`` form them.

    Example:
        >>> layer = sk.DecomposedMultiheadAttention(16, num_heads=4, rank=8, batch_first=True)
        >>> x = torch.ones(2, 5, 16)
        >>> layer(x, x, x)[0].shape
        torch.Size([2, 5, 16])
    """

    dense_type = nn.MultiheadAttention
    embed_dim: int
    num_heads: int
    dropout: float
    add_zero_attn: bool
    kdim: int
    vdim: int
    batch_first: bool
    in_proj: DecomposedLinear
    q_proj: DecomposedLinear
    k_proj: DecomposedLinear
    v_proj: DecomposedLinear
    out_proj: DecomposedLinear
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None

    # Needs ``num_heads`` alone.
    merge_masks = nn.MultiheadAttention.merge_masks

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        *,
        rank: Rank = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dense = nn.MultiheadAttention(
            embed_dim,
            num_heads,
            dropout,
            bias,
            add_bias_kv,
            add_zero_attn,
            kdim,
            vdim,
            batch_first,
            device=device,
            dtype=dtype,
        )
        self._take(dense, rank)

    @classmethod
    def from_attention(cls, layer: nn.MultiheadAttention, rank: Rank = None) -> Self:
        """Return the layer with each projection decomposed to its best approximation (eq. 3).

        ``layer`` stays as it is. Factors are in the dtype and on the device of the weights and
        train if these do; biases are copied.

        Raises:
            TypeError: not an ``nn.MultiheadAttention``, or a subclass with a forward of its own;
                a rank of another type than ``resolve_rank`` takes.
            ValueError: hooks, parametrizations, a weight without values or with NaN or Inf; a
                rank out of range.

        Example:
            >>> dense = torch.nn.MultiheadAttention(8, 2)
            >>> layer = sk.DecomposedMultiheadAttention.from_attention(dense)
            >>> torch.allclose(layer.to_attention().in_proj_weight, dense.in_proj_weight, atol=1e-5)
            True
        """
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._take(layer, rank)
        return made.train(layer.training)

    def _take(self, layer: nn.MultiheadAttention, rank: Rank) -> None:
        check_source(layer, nn.MultiheadAttention)
        for option in _OPTIONS:
            setattr(self, option, getattr(layer, option))
        # The name by which ``nn.TransformerEncoderLayer`` asks.
        self._qkv_same_embed_dim = layer._qkv_same_embed_dim
        for name, projection in _decomposed_projections(layer, rank).items():
            self.add_module(name, projection)
        for name in ("bias_k", "bias_v"):
            own = getattr(layer, name)
            copy = own if own is None else nn.Parameter(own.detach().clone(), own.requires_grad)
            self.register_parameter(name, copy)

    @property
    def in_proj_weight(self) -> Tensor | None:
        """The recomposed (3d, d) weight, formed anew each time; None with three projections."""
        return self.in_proj.weight if self._qkv_same_embed_dim else None

    @property
    def in_proj_bias(self) -> Tensor | None:
        """The (3d,) bias of queries, keys and values; None without."""
        if self._qkv_same_embed_dim:
            return self.in_proj.bias
        biases: list[Tensor] = [
            p.bias for p in (self.q_proj, self.k_proj, self.v_proj) if p.bias is not None
        ]
        return torch.cat(biases) if biases else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output and the weights, as ``nn.MultiheadAttention.forward``.

        Args:
            query: (L, N, d); (N, L, d) with ``batch_first``; (L, d) without a batch.
            key: the same with S and ``kdim``.
            value: the same with S and ``vdim``.
            key_padding_mask: (N, S) or (S,): True, or a number that is added, for each key.
            need_weights: whether the weights are returned too, which means to store them.
            attn_mask: (L, S) or (N heads, L, S): True where a query does not see a key, or a
                number that is added.
            average_attn_weights: (N, L, S) weights rather than (N, heads, L, S).
            is_causal: a hint that ``attn_mask``, which is needed all the same, is the causal one.

        Raises:
            TypeError: a mask that is neither bool nor floating.
            ValueError: shapes that do not fit, nested tensors, ``is_causal`` without a mask.
        """
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is given without attn_mask; expected the causal mask too")
        check_inputs(query, key, value, self.batch_first)
        one_source, one_memory = query is key and key is value, key is value
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
        q, k, v = self._project(query, key, value, one_source, one_memory)
        # After the products, which would have to copy a transposed input.
        if batched and not self.batch_first:
            q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        q, k, v, extra = self._heads(q, k, v)
        masks = Masks(attn_mask, key_padding_mask, is_causal)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            y, weights = attend_with_weights(q, k, v, masks, extra, dropout)
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            y = attend(q, k, v, masks, extra, dropout)
        if not batched:
            y = self.out_proj(y[0].transpose(0, 1).flatten(1))
            return y, weights if weights is None else weights[0]
        # In the caller's order, so that the result is contiguous.
        y = y.transpose(1, 2) if self.batch_first else y.permute(2, 0, 1, 3)
        return self.out_proj(y.flatten(2)), weights

    def _project(
        self, query: Tensor, key: Tensor, value: Tensor, one_source: bool, one_memory: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (..., d), in as few products as can be."""
        if not self._qkv_same_embed_dim:
            return self.q_proj(query), self.k_proj(key), self.v_proj(value)
        d = self.embed_dim
        if one_source:
            q, k, v = self.in_proj(query).chunk(3, dim=-1)
            return q, k, v
        q = _outputs(self.in_proj, query, 0, d)
        if one_memory:
            k, v = _outputs(self.in_proj, key, d, 3 * d).chunk(2, dim=-1)
            return q, k, v
        k = _outputs(self.in_proj, key, d, 2 * d)
        return q, k, _outputs(self.in_proj, value, 2 * d, 3 * d)

    def _heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """Return (N, heads, length, d / heads) for (N, length, d), and how many keys were added."""
        extra = 0
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                torch.cat([t, own.to(t.dtype).expand(t.shape[0], 1, -1)], dim=1)
                for t, own in ((k, self.bias_k), (v, self.bias_v))
            )
            extra += 1
        if self.add_zero_attn:
            k, v = (functional.pad(t, (0, 0, 0, 1)) for t in (k, v))
            extra += 1
        # Not -1, which says nothing where there are no entries.
        head = self.embed_dim // self.num_heads
        q, k, v = (t.view(*t.shape[:2], self.num_heads, head).transpose(1, 2) for t in (q, k, v))
        return q, k, v, extra

    def to_attention(self) -> nn.MultiheadAttention:
        """Return the ``nn.MultiheadAttention`` with the recomposed weights (eq. 4), detached."""
        # With gradients, so that a weight tells whether its factors train.
        with torch.enable_grad():
            parameters = {
                "in_proj_bias": self.in_proj_bias,
                "out_proj.weight": self.out_proj.weight,
                "out_proj.bias": self.out_proj.bias,
                "bias_k": self.bias_k,
                "bias_v": self.bias_v,
            }
            if self._qkv_same_embed_dim:
                parameters["in_proj_weight"] = self.in_proj.weight
            else:
                for name in ("q_proj", "k_proj", "v_proj"):
                    parameters[f"{name}_weight"] = getattr(self, name).weight
        options = {option: getattr(self, option) for option in _OPTIONS}
        return _dense_attention(options, parameters, self.training)

    to_dense = to_attention

    def extra_repr(self) -> str:
        """Return the sizes, the dropout and the order of dimensions."""
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, dropout={self.dropout}, "
            f"batch_first={self.batch_first}"
        )


def _outputs(projection: nn.Module, x: Tensor, start: int, stop: int) -> Tensor:
    """Return some of the outputs; a plain layer, from ``recompose_model``, computes them all."""
    if isinstance(projection, DecomposedLinear):
        return projection.outputs(x, start, stop)
    y: Tensor = projection(x)
    return y[..., start:stop]


def _decomposed_projections(
    layer: nn.MultiheadAttention, rank: Rank
) -> dict[str, DecomposedLinear]:
    """Return the decompositions of all projections: in_proj, or q_proj, k_proj and v_proj where
    keys or values have sizes of their own, and out_proj.
    """
    names = ["in_proj"] if layer._qkv_same_embed_dim else ["q_proj", "k_proj", "v_proj"]
    bias = layer.in_proj_bias
    biases = [None] * len(names) if bias is None else bias.chunk(len(names))
    projections = {
        name: DecomposedLinear.from_linear(_linear(layer.get_parameter(f"{name}_weight"), b), rank)
        for name, b in zip(names, biases, strict=True)
    }
    return {**projections, "out_proj": DecomposedLinear.from_linear(layer.out_proj, rank)}


def _dense_attention(
    options: Mapping[str, Any], parameters: Mapping[str, Tensor | None], training: bool
) -> nn.MultiheadAttention:
    """Return an ``nn.MultiheadAttention`` with copies of ``parameters``, by its own names."""
    like = parameters["out_proj.weight"]
    assert like is not None
    made = uninitialised(
        nn.MultiheadAttention,
        like=like,
        bias=parameters["in_proj_bias"] is not None,
        add_bias_kv=parameters["bias_k"] is not None,
        **options,
    )
    with torch.no_grad():
        for name, source in parameters.items():
            if source is not None:
                made.get_parameter(name).copy_(source).requires_grad_(source.requires_grad)
    return made.train(training)


def _linear(weight: nn.Parameter, bias: Tensor | None) -> nn.Linear:
    """Return a layer that shares these values: what ``from_linear`` decomposes."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = weight
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=bias.requires_grad)
    return layer
