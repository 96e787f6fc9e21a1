"""The built-in rules: how the parameters of PyTorch's own modules become matrices.

What the papers' code does ("Spectral dynamics of weights", appendix D): weights of linear and
embedding layers as stored; convolutions as ``(c_out, c_in * kernel)``, one for each group;
transposed convolutions with their first two axes swapped; recurrent and fused attention weights
whole. Decomposed layers have the rules of the dense ones, which see the shape of the weight that
there would be.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from spectral_monitor.model.fused_layouts import fused_attention_blocks
from spectral_monitor.model.guessed_layers import GuessedLayer
from spectral_monitor.model.layer_shapes import declared_shape, dense_type, misfit
from spectral_monitor.model.matrix import Block, MatrixView, joined
from spectral_monitor.model.not_matrices import why_no_matrix
from spectral_monitor.model.registry import MatrixRegistry, ParameterInfo, Rule, Skip
from torch import Tensor, nn

_GATES = {
    nn.LSTM: ("i", "f", "g", "o"),
    nn.LSTMCell: ("i", "f", "g", "o"),
    nn.GRU: ("r", "z", "n"),
    nn.GRUCell: ("r", "z", "n"),
}
_NORMS = re.compile(r"(Layer|RMS|Rms|Group|Batch|Instance)Norm")
# Alignment is highest for the gate that writes new content (g of an LSTM, n of a GRU).
_CONTENT_GATE = 2


def default_registry() -> MatrixRegistry:
    """A fresh registry with the rules of this file; register on it to override them.

    Example:
        >>> registry = sk.default_registry()
        >>> registry.register("*.lora_A", lambda info: sk.Skip("an adapter"))
        >>> monitor = sk.SpectralMonitor(torch.nn.Linear(4, 3), registry=registry)
    """
    registry = MatrixRegistry(_plain)
    for linear in (nn.Linear, nn.Bilinear):
        registry.register(linear, _of_layer(_linear))
    for table in (nn.Embedding, nn.EmbeddingBag):
        registry.register(table, _of_layer(_embedding))
    for conv in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        registry.register(conv, _of_layer(_conv))
    for deconv in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
        registry.register(deconv, _of_layer(_conv_transpose))
    for recurrent in (nn.RNNBase, nn.RNNCellBase):
        registry.register(recurrent, _recurrent)
    registry.register(nn.MultiheadAttention, _of_layer(_attention))
    for norm in (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm):
        registry.register(norm, lambda info: Skip("scale of a normalisation"))
    return registry


def _of_layer(rule: Rule) -> Rule:
    """The rule, for weights of the shape that their layer declares; others are no matrix of it.

    A parameter of the layer beside its weight goes by its name, as one of an unknown module does.
    """

    def checked(info: ParameterInfo) -> Sequence[MatrixView] | Skip:
        if info.factors is None:
            odd = misfit(info.module, info.leaf, info.tensor)
            if odd is not None:
                return Skip(odd, is_layer=True)
            reason = why_no_matrix(info.name, may_be_buffer=False)
            if reason is not None:
                return Skip(reason)
        return rule(info)

    return checked


def _linear(info: ParameterInfo) -> Sequence[MatrixView] | Skip:
    # Projections of a decomposed attention are layers, of which that of the output is a linear
    # one in `nn.MultiheadAttention`, too.
    of_attention = issubclass(dense_type(info.parent), nn.MultiheadAttention)
    if info.factors is not None and of_attention and not info.name.endswith("out_proj.weight"):
        return _attention(info)
    return [MatrixView("linear")] if info.tensor.dim() == 2 else _batch(info, "linear")


def _embedding(info: ParameterInfo) -> Sequence[MatrixView] | Skip:
    return [MatrixView("embedding", is_table=True)]


def _conv(info: ParameterInfo) -> Sequence[MatrixView] | Skip:
    groups = int(getattr(info.module, "groups", 1))
    return _kernels(info, groups) if info.tensor.dim() > 2 else _plain(info)


def _conv_transpose(info: ParameterInfo) -> Sequence[MatrixView] | Skip:
    groups = int(getattr(info.module, "groups", 1))
    return _transposed_kernels(info, groups) if info.tensor.dim() > 2 else _plain(info)


def _recurrent(info: ParameterInfo) -> Sequence[MatrixView] | Skip:
    gates = next((names for kind, names in _GATES.items() if isinstance(info.module, kind)), ())
    if info.module is None:
        gates = _guess_of(info).gates
    # weight_hr is the projection of an LSTM's output: no gates in it.
    if not gates or not info.leaf.startswith(("weight_ih", "weight_hh")):
        return [MatrixView("recurrent")]
    size = info.tensor.shape[0] // len(gates)
    blocks = tuple(Block(f"gate {g}", i * size, (i + 1) * size) for i, g in enumerate(gates))
    return [
        MatrixView("recurrent", blocks=blocks, output_block=blocks[_CONTENT_GATE].label),
    ]


def _attention(info: ParameterInfo) -> Sequence[MatrixView] | Skip:
    if info.name.endswith(("in_proj_weight", "in_proj.weight")) and info.heads:
        blocks = fused_attention_blocks(info.tensor.shape[0], info.heads)
        return [MatrixView("attention", blocks=blocks)]
    return [MatrixView("attention")]


def _plain(info: ParameterInfo) -> Sequence[MatrixView] | Skip:
    """A parameter of an unknown module, or of a state dict: as its name and the others tell."""
    reason = why_no_matrix(info.name, may_be_buffer=info.module is None)
    if reason is not None:
        return Skip(reason)
    if _NORMS.search(type(info.module).__name__):
        return Skip("scale of a normalisation")
    declared = _declared(info)
    if declared is not None:
        return declared
    layer = _layer(info)
    views = _inferred(info, layer)
    if not layer.note:
        return views
    if isinstance(views, Skip):
        return replace(views, reason=joined(views.reason, layer.note))
    return [replace(view, note=layer.note) for view in views]


def _guess_of(info: ParameterInfo) -> GuessedLayer:
    guess = None if info.guesses is None else info.guesses.get(info.name)
    return guess or GuessedLayer("plain")


def _layer(info: ParameterInfo) -> GuessedLayer:
    """The guess from names, where the module does not contradict that."""
    guess = _guess_of(info)
    # A module that is there and is no convolution has no kernel, and factors are stacked by groups.
    is_kernel = info.factors is None and (
        info.module is None or hasattr(info.module, "kernel_size")
    )
    if guess.family in ("conv", "deconv") and not is_kernel:
        return GuessedLayer("plain")
    return guess


def _declared(info: ParameterInfo) -> Sequence[MatrixView] | Skip | None:
    """A weight whose module tells its sizes, though its type is not known."""
    shape, declared = tuple(info.tensor.shape), declared_shape(info.module, info.leaf)
    # Hugging Face's Conv1D is a linear layer that stores its weight as (inputs, outputs).
    if type(info.module).__name__ == "Conv1D" and hasattr(info.module, "nf"):
        return [MatrixView("linear", _transposed, note="stored as (inputs, outputs)")]
    if declared is None:
        return None
    if hasattr(info.module, "num_embeddings"):
        return [MatrixView("embedding", is_table=True)] if shape == declared else None
    if shape == declared:
        return [MatrixView("linear")]
    if shape == declared[::-1]:
        return [MatrixView("linear", _transposed, note="stored as (inputs, outputs)")]
    return Skip(misfit(info.module, info.leaf, info.tensor) or "", is_layer=True)


def _inferred(info: ParameterInfo, layer: GuessedLayer) -> Sequence[MatrixView] | Skip:
    match layer.family:
        case "packed":
            return Skip("packed, 4 bits a weight: its scales are listed beside it", is_layer=True)
        case "scale":
            return Skip("scale of a normalisation, by its name or its bias")
        case "embedding":
            return _embedding(info)
        case "recurrent":
            return _recurrent(info)
        case "attention":
            return _attention(info)
        case "conv":
            return _kernels(info, layer.groups)
        case "deconv":
            return _conv_transpose(info)
    fused = info.factors is not None and info.name.endswith("in_proj.weight")
    if fused and info.tensor.shape[0] == 3 * info.tensor.shape[1]:
        return _attention(info)  # Of a decomposed `nn.MultiheadAttention`.
    kind = "linear" if layer.family == "linear" else "parameter"
    if info.tensor.dim() == 2:
        return [MatrixView(kind, _transposed if layer.transposed else None)]
    return _batch(info, kind, transposed=layer.transposed)


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.mT


def _batch(
    info: ParameterInfo, kind: str, *, transposed: bool = False
) -> Sequence[MatrixView] | Skip:
    shape = info.tensor.shape
    if sum(size > 1 for size in shape) < 2:
        return Skip("a vector: at most one dimension is longer than 1")
    leading = shape[:-2]
    if math.prod(leading) == 1:
        return [MatrixView(kind, lambda t: t.flatten(0, -2))]

    def entry(index: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        return (lambda t: t[index].mT) if transposed else (lambda t: t[index])

    return [
        MatrixView(kind, entry(index), f"[{', '.join(map(str, index))}]")
        for index in itertools.product(*(range(size) for size in leading))
    ]


def _kernels(info: ParameterInfo, groups: int) -> Sequence[MatrixView] | Skip:
    """The matrices of a convolution's weight (c_out, c_in / groups, taps...)."""
    weight = info.tensor
    rows, channels = weight.shape[0] // groups, weight.shape[1]

    def group(g: int) -> Callable[[Tensor], Tensor]:
        return lambda t: t[g * rows : (g + 1) * rows].flatten(1)

    return _groups(info, groups, rows, channels, group)


def _transposed_kernels(info: ParameterInfo, groups: int) -> Sequence[MatrixView] | Skip:
    """Of a weight (c_in, c_out / groups, taps...): the groups lie along the inputs here."""
    weight = info.tensor
    channels, rows = weight.shape[0] // groups, weight.shape[1]

    def group(g: int) -> Callable[[Tensor], Tensor]:
        return lambda t: t[g * channels : (g + 1) * channels].transpose(0, 1).flatten(1)

    return _groups(info, groups, rows, channels, group)


def _groups(
    info: ParameterInfo,
    groups: int,
    rows: int,
    channels: int,
    group: Callable[[int], Callable[[Tensor], Tensor]],
) -> Sequence[MatrixView] | Skip:
    """One (rows, channels * taps) matrix per group of a convolution."""
    if groups > 1 and rows * channels == 1:
        return Skip("depthwise: every group is one kernel, a vector")
    taps, centre = _kernel(info)
    return [
        MatrixView(
            "conv",
            group(g),
            f"[group {g}]" if groups > 1 else "",
            taps,
            centre,
            first_output=g * rows,
            outputs=groups * rows,
            first_input=g * channels,
            inputs=groups * channels,
        )
        for g in range(groups)
    ]


def _kernel(info: ParameterInfo) -> tuple[int, int]:
    """Taps of a kernel and the index of its centre, in row-major order."""
    sizes = info.tensor.shape[2:]
    centre = 0
    for size in sizes:
        centre = centre * size + size // 2
    return math.prod(sizes), centre
