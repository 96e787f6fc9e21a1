"""Operations that leave every element where it is, reduce, or resize: labels stay."""

from __future__ import annotations

from dataclasses import replace

import torch
from spectral_monitor.pairs.tracing.context import (
    Call,
    Context,
    NotFollowedError,
    Rule,
    here,
    tensors_of,
    words,
)
from spectral_monitor.pairs.tracing.ledger import joined, reduced, varies
from spectral_monitor.pairs.tracing.products import contracted
from spectral_monitor.pairs.tracing.store import Marks
from torch import Tensor

_SUMS = {"add", "add_", "sub", "sub_", "rsub", "lerp", "lerp_"}
_PRODUCTS = {"mul", "mul_"}
_SCALES = {"div", "div_", "neg", "neg_"}
_SCALED_SUMS = {"addcmul", "addcmul_", "addcdiv", "addcdiv_"}


def pointwise(context: Context, call: Call) -> None:
    """Sums and products of any number of operands, and functions of one."""
    name, out = call.base_name, call.out
    operands = [t for key, t in call.arguments.items() if isinstance(t, Tensor) and key != "out"]
    # A number computed from a weight, as its spectral norm, only scales.
    if not any(context.store.is_data(t) and _is_activation(context, t, out) for t in operands):
        _weights(context, call, operands, out, is_sum=name in _SUMS)
        return
    if not out.is_floating_point() and not out.is_complex():
        context.settle(call, [], context.past(call))
        return
    if name in _SCALED_SUMS:
        product = context.join(operands[1:], out.shape, is_sum=False)
        base = context.join(operands[:1], out.shape, is_sum=True)
        written = joined(context.ledger, base, product, is_sum=True)
    elif name == "where":
        _where(context, call)
        return
    else:
        written = context.join(operands, out.shape, is_sum=name in _SUMS)
    context.settle(call, written.layers, context.past(call), marks=_marks(context, call, operands))


def _marks(context: Context, call: Call, operands: list[Tensor]) -> Marks:
    """The marks of all operands, and which outputs were multiplied."""
    name = call.base_name
    marks = context.marks(call)
    if name not in _PRODUCTS | _SUMS | _SCALES:
        # What is summed after another function is no product of the two.
        return replace(marks, factors=frozenset())
    uses = [
        {use for layer in context.store.layers(t) for use in context.ledger.uses(layer)}
        for t in operands
    ]
    written = [writers for writers in uses if writers]
    if len(written) < 2 or name in _SUMS:
        return marks
    probable = any(context.store.marks(t).probabilities for t in operands)
    if name not in _PRODUCTS or len(written) > 2 or probable:
        return replace(marks, factors=frozenset())
    first, second = written
    return replace(marks, factors=marks.factors | {(a, b) for a in first for b in second})


def _is_activation(context: Context, t: Tensor, out: Tensor) -> bool:
    return t.numel() > 1 or out.numel() == 1 or bool(context.store.layers(t))


def _weights(
    context: Context, call: Call, operands: list[Tensor], out: Tensor, *, is_sum: bool
) -> None:
    """Weights alone and constants: a weight still, or two tables of which the sum is larger."""
    weights = [t for t in operands if context.store.is_weight(t)]
    if call.writes is not None:
        if not weights:
            context.store.forget(call.writes)
        return
    if not weights:
        return
    # A weight to which a product of two others is added stays that weight.
    whole = [t for t in weights if t.shape == out.shape]
    whole.sort(key=context.store.is_product)
    if whole or len(weights) == 1 or not is_sum:
        context.store.put_copied(out, (whole or weights)[0])
        return
    written = context.join(weights, out.shape, is_sum=True)
    context.settle(call, written.layers, context.past(call))


def _where(context: Context, call: Call) -> None:
    """A choice between two activations, element by element."""
    condition, a, b = (call.arguments.get(key) for key in ("condition", "self", "other"))
    out = call.out
    parts = [context.written(t, out.shape).layers if isinstance(t, Tensor) else [] for t in (a, b)]
    layers = parts[0] or parts[1]
    if parts[0] and parts[1] and isinstance(condition, Tensor):
        chosen = here(condition).expand(out.shape)
        layers = []
        for index in range(max(map(len, parts))):
            one, other = (
                part[index] if index < len(part) else torch.zeros(out.shape, dtype=torch.int64)
                for part in parts
            )
            layers.append(torch.where(chosen, one, other))
    context.settle(call, layers, context.past(call))


def same(context: Context, call: Call) -> None:
    """The first tensor's labels for the first output, as of norms and dropout."""
    given, out = next(tensors_of(list(call.arguments.values()))), call.out
    if context.store.is_weight(given) and call.writes is None:
        context.store.put_copied(out, given)
    elif given.shape == out.shape:
        context.settle(call, context.store.layers(given), context.past(call))
    else:
        raise NotFollowedError


def softmax(context: Context, call: Call) -> None:
    """Outputs of a layer that compete keep their labels; scores of a table along keys do not."""
    (given,) = call.tensors("self")
    dim = int(call.arguments["dim"])
    layers = [x for x in context.store.layers(given) if x.dim() and varies(x, dim)]
    scores = context.store.marks(given).scores
    context.ledger.attention.update(scores)
    context.settle(call, layers, context.past(call), marks=Marks(scores, True))


def reduction(context: Context, call: Call) -> None:
    """A sum, mean, maximum or norm over some dimensions."""
    (given,) = call.tensors("self")
    if not context.store.is_data(given):
        return
    dims = call.arguments.get("dim")
    dims = [] if dims is None else [dims] if isinstance(dims, int) else list(dims)
    keepdim = bool(call.arguments.get("keepdim", False))
    layers: list[Tensor] = []
    for layer in context.store.layers(given):
        layers += reduced(context.ledger, layer, dims, keepdim=keepdim)
    marks = context.marks(call)
    met: set[int] = set()
    if marks.factors and call.name in _LINEAR_REDUCTIONS:
        met = contracted(context, given, dims, marks.factors)
    if marks.probabilities and marks.scores and call.name in _LINEAR_REDUCTIONS:
        layers = [_through(context, x) for x in layers]
    marks = Marks(frozenset(met), mixed=marks.mixed)
    if not met:
        marks |= context.mixes(call, layers)
    for one in tensors_of(call.result):
        # Indices of a maximum are no outputs.
        left = [x.expand(one.shape) for x in layers] if one.is_floating_point() else []
        context.store.put(one, left, context.past(call), marks=marks)


_LINEAR_REDUCTIONS = ("aten::sum", "aten::mean")


def _through(context: Context, layer: Tensor) -> Tensor:
    """Values that were multiplied by the probabilities of an attention, and summed."""
    sizes = [layer.shape[dim] for dim in range(layer.dim()) if varies(layer, dim)]
    return context.ledger.through(layer, sizes[-1]) if sizes else layer


def fourier(context: Context, call: Call) -> None:
    """A transform along some dimensions; a writer along others, such as channels, stays."""
    (given,) = call.tensors("self")
    if not context.store.is_data(given):
        raise NotFollowedError
    layers: list[Tensor] = []
    for layer in context.store.layers(given):
        layers += reduced(context.ledger, layer, list(call.arguments["dim"]), keepdim=True)
    layers = [x.expand(call.out.shape) for x in layers]
    marks = context.marks(call) | context.mixes(call, layers)
    context.settle(call, layers, context.past(call), marks=marks)


def resized(layer: Tensor, shape: torch.Size) -> Tensor:
    """Labels of the nearest element, where a pooling or an interpolation changed sizes."""
    for dim, size in enumerate(shape):
        have = layer.shape[dim]
        if have != size:
            index = torch.div(torch.arange(size) * have, size, rounding_mode="floor")
            layer = layer.index_select(dim, index)
    return layer


def resize(context: Context, call: Call) -> None:
    """Pooling and interpolation over the last dimensions."""
    (given,) = call.tensors("self" if "self" in call.arguments else "input")
    out = call.out
    if given.dim() != out.dim():
        raise NotFollowedError
    if context.store.is_weight(given):
        context.store.put_numbers(out, resized(context.store.numbers(given), out.shape))
        return
    layers = [resized(layer, out.shape) for layer in context.store.layers(given)]
    context.settle(call, layers, context.past(call))


def glu(context: Context, call: Call) -> None:
    """Half of the outputs times the other half."""
    (given,) = call.tensors("self")
    halves = given.chunk(2, int(call.arguments.get("dim", -1)))
    written = context.join(halves, call.out.shape, is_sum=False)
    context.settle(call, written.layers, context.past(call))


_SAME = words(
    "native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit "
    "_native_batch_norm_legit_no_training cudnn_batch_norm miopen_batch_norm batch_norm_elemt "
    "_batch_norm_no_update _batch_norm_with_update _fused_rms_norm native_dropout bernoulli "
    "cumsum cumsum_ cumprod logcumsumexp _weight_norm_interface renorm rrelu_with_noise "
    "_prelu_kernel triu tril triu_ tril_ masked_fill masked_fill_ _masked_scale "
    "fake_quantize_per_tensor_affine cummax cummin threshold"
)
# Elementwise, though PyTorch does not say so.
_UNTAGGED = words("hardswish log_sigmoid_forward dequantize _lazy_clone floor_divide")
_RESIZE = words(
    "max_pool2d_with_indices max_pool3d_with_indices avg_pool2d avg_pool3d _adaptive_avg_pool2d "
    "_adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d "
    "upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
    "mkldnn_max_pool2d mkldnn_max_pool3d max_unpool2d fractional_max_pool2d"
)
_REDUCE = words(
    "mean sum amax amin max min logsumexp var std var_mean std_mean norm linalg_vector_norm prod "
    "median nanmedian nansum aminmax"
)

_FOURIER = words("_fft_c2c _fft_r2c _fft_c2r")

RULES: dict[str, Rule] = {
    **dict.fromkeys(_SAME, same),
    **dict.fromkeys(_UNTAGGED, pointwise),
    **dict.fromkeys(_RESIZE, resize),
    **dict.fromkeys(_REDUCE, reduction),
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax"), softmax),
    **dict.fromkeys(_FOURIER, fourier),
    "glu": glu,
}
