"""What a layer's own attributes tell of its weight: the kind of layer, its shape, its factors.

A weight that is packed (4-bit), partitioned (ZeRO-3, FSDP) or a placeholder still is the layer's
parameter, but the numbers in it are no matrix of that layer.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from spectral_kernels.entry.results import Decomposed

_FLAT_PARAMETERS = ("_flat_param", "flat_param")
_PACKED = ("qweight", "weight_packed", "packed_weight")


def dense_type(module: nn.Module | None) -> type:
    """The type of a layer; of a decomposed one, that of the layer with a weight in its place."""
    own = type(module)
    dense: type = getattr(own, "dense_type", own)
    return dense


def factored_shape(module: nn.Module) -> tuple[int, ...] | None:
    """The shape of the weight in whose place a decomposed layer has factors.

    ``None`` of other layers, and where the factors are not its own parameters since they are
    parametrized.
    """
    if all(module._parameters.get(name) is not None for name in Decomposed._fields):
        shape: tuple[int, ...] | None = getattr(module, "weight_shape", None)
        return shape
    return None


def declared_shape(module: nn.Module | None, leaf: str) -> tuple[int, ...] | None:
    """What the module's attributes say; ``None`` where they say nothing of this parameter.

    Args:
        module: the owner, of PyTorch's own types or with their attributes.
        leaf: last part of the parameter's name.
    """
    if isinstance(module, nn.MultiheadAttention) and leaf == "in_proj_weight":
        return (3 * module.embed_dim, module.embed_dim)
    if module is None or leaf != "weight":
        return None
    if isinstance(module, nn.Bilinear):
        return (module.out_features, module.in1_features, module.in2_features)
    if isinstance(module, _ConvNd):
        first, second = module.out_channels, module.in_channels
        if isinstance(module, _ConvTransposeNd):
            first, second = second, first
        return (first, second // module.groups, *module.kernel_size)
    for names in (("out_features", "in_features"), ("num_embeddings", "embedding_dim")):
        sizes = tuple(x for x in (getattr(module, name, None) for name in names)
                      if isinstance(x, int))  # fmt: skip
        if len(sizes) == len(names):
            return sizes
    return None


def holds_a_layer(module: nn.Module | None, leaf: str) -> bool:
    """Whether a parameter is a layer's weight, whatever is in its tensor now."""
    return (
        leaf in _FLAT_PARAMETERS
        or leaf in _PACKED
        or declared_shape(module, leaf) is not None
        or (isinstance(module, nn.RNNBase | nn.RNNCellBase) and leaf.startswith("weight_"))
    )


def misfit(module: nn.Module | None, leaf: str, tensor: Tensor) -> str | None:
    """Why a layer's weight is not the matrix that its layer multiplies by; ``None`` where it is.

    The reason names the kind of placeholder where something tells it.
    """
    whole = getattr(tensor, "ds_shape", None)
    if whole is not None and tuple(whole) != tuple(tensor.shape):
        return (
            f"partitioned by ZeRO-3: {_text(whole)} in all, {_text(tensor.shape)} here; gather it "
            "(deepspeed.zero.GatheredParameters) where the monitor is made and stepped"
        )
    if leaf in _FLAT_PARAMETERS or type(tensor).__name__ == "FlatParameter":
        return (
            "the weights of several layers, flattened and sharded (FSDP): use_orig_params=True or "
            "fully_shard keep them apart"
        )
    declared = declared_shape(module, leaf)
    if declared is None or tuple(tensor.shape) == declared:
        return None
    return f"{_text(tensor.shape)} where the layer is {_text(declared)}: {_kind(tensor, declared)}"


def _kind(tensor: Tensor, declared: tuple[int, ...]) -> str:
    if type(tensor).__name__ == "Params4bit" or getattr(tensor, "quant_state", None) is not None:
        return "packed, 4 bits a weight (bitsandbytes)"
    if tensor.numel() == 0:
        return "a placeholder, its values are partitioned or offloaded"
    if tensor.dim() == 1:
        return "a flat part of the weight, as FSDP shards it"
    if tensor.dim() == 2 and 1 in tensor.shape and 1 not in declared:
        return "packed or flattened"
    return (
        "packed, partitioned or replaced; set the layer's sizes, or register a rule for it, if "
        "this is its weight"
    )


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) if len(shape) != 1 else f"({shape[0]})"
