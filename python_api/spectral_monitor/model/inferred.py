"""What a layer is, where no module tells: from its name, its siblings and the whole set of shapes.

For state dicts, and for parameters of modules of unknown types. A weight's own shape says little: a
bias tells which side is the output, a recurrent weight its gates, a neighbour whether a kernel is
one of a group. What is a guess carries a note that says so.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from spectral_monitor.model.kernel_groups import kernel_groups
from spectral_monitor.model.orientation import Stored, plain_orientation, stored_as

__all__ = ["Inferred", "Layers", "infer_layers"]

Shape = tuple[int, ...]
Family = Literal[
    "linear", "embedding", "conv", "deconv", "recurrent", "attention", "scale", "packed", "plain"
]

# Children that hold nothing but a table of rows to look up; a bias is never among them.
_TABLE = re.compile(
    r"(.*_)?(embed(s|der|ding|dings)?|emb|embs|wte|wpe|wtt|lut|codebooks?)(_.*|\d*)"
    r"|shared|(.*_)?tokens?|.*embedder(_\d+)?"
)
_NO_TABLE = re.compile(r".*(unembed|patch|proj|out$|linear|dense|conv|norm|head|hidden|fc)")
_FUSED = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_DECONV = re.compile(r"(.*_)?(deconv|up_?conv|conv_?t|conv_?transpose|conv_up)(_.*|\d*)")
_NORM = re.compile(r"(.*_)?(layer_?norm|batch_?norm|group_?norm|rms_?norm|norm|ln|bn)(_.*|\d*)")
_GATES = {4: ("i", "f", "g", "o"), 3: ("r", "z", "n")}
# The longest kernel along one axis that is met without a bias beside it.
_LONG_KERNEL = 11


@dataclass(frozen=True, slots=True)
class Inferred:
    """What a parameter of two or more dimensions is."""

    family: Family
    transposed: bool = False
    """Stored as (inputs, outputs)."""
    groups: int = 1
    """Of a convolution."""
    gates: tuple[str, ...] = ()
    """Of a recurrent weight."""
    note: str = ""
    """What was guessed."""


class Layers:
    """What `infer_layers` tells of a model, found when it is first asked for."""

    def __init__(self) -> None:
        self._shapes: Mapping[str, Shape] = {}
        self._found: dict[str, Inferred] | None = None

    def know(self, shapes: Mapping[str, Shape]) -> None:
        """The shapes of all parameters, in order."""
        self._shapes, self._found = shapes, None

    def get(self, name: str) -> Inferred | None:
        """What a parameter is; None where it has fewer than two dimensions."""
        if self._found is None:
            self._found = infer_layers(self._shapes)
        return self._found.get(name)


def infer_layers(shapes: Mapping[str, Shape]) -> dict[str, Inferred]:
    """What each parameter of two and more dimensions is.

    Args:
        shapes: of all parameters, by qualified name, in the order of the layers.
    """
    scopes: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        scopes.setdefault(path, {})[leaf] = shape
    stored = stored_as(shapes)
    found = {
        name: _one(name, shape, scopes[name.rpartition(".")[0]], stored, scopes.get(name, {}))
        for name, shape in shapes.items()
        if len(shape) >= 2
    }
    return _with_groups(shapes, _with_first_table(shapes, found))


def _one(
    name: str,
    shape: Shape,
    siblings: Mapping[str, Shape],
    stored: Mapping[str, Stored],
    inside: Collection[str],
) -> Inferred:
    path, _, leaf = name.rpartition(".")
    if "absmax" in inside:
        return Inferred("packed")
    if re.match(r"weight_(ih|hh|hr)(_l\d+)?(_reverse)?$", leaf):
        return _recurrent(leaf, siblings)
    if leaf in _FUSED:
        return Inferred("attention")
    if leaf != "weight":
        return _plain(name, siblings)
    owner = _owner(path)
    bias = siblings.get("bias", ())
    if bias == shape or _NORM.fullmatch(owner):
        return Inferred("scale")
    if len(shape) == 2:
        if not bias and _TABLE.fullmatch(owner) and not _NO_TABLE.match(owner):
            return Inferred("embedding", note="an embedding by its name")
        told = stored.get(name, Stored(False))
        return Inferred("linear", told.transposed, note=told.note)
    return _kernel(shape, bias, owner, _plain(name, siblings))


def _owner(path: str) -> str:
    """The name of the module, of a member of a list that of the list."""
    parts = [part for part in path.lower().split(".") if not part.isdecimal()]
    last = path.lower().rpartition(".")[2]
    if not last.isdecimal():
        return last
    # A list of embeddings is called so; a sequence of layers may be called anything.
    is_list = parts and re.fullmatch(r"(.*_)?(embeddings|embeds|embs|codebooks)", parts[-1])
    return parts[-1] if is_list else ""


def _plain(name: str, siblings: Mapping[str, Shape]) -> Inferred:
    told = plain_orientation(name.rpartition(".")[2], siblings)
    return Inferred("plain", told.transposed, note=told.note)


def _recurrent(leaf: str, siblings: Mapping[str, Shape]) -> Inferred:
    ending = re.sub(r"^weight_(ih|hh|hr)", "", leaf)
    projection, hidden = (siblings.get(f"weight_{role}{ending}") for role in ("hr", "hh"))
    if leaf.startswith("weight_hr") or hidden is None:
        return Inferred("recurrent")
    size = hidden[1] if projection is None else projection[1]
    return Inferred("recurrent", gates=_GATES.get(hidden[0] // size, ()))


def _kernel(shape: Shape, bias: Shape, owner: str, stack: Inferred) -> Inferred:
    """A weight of three and more dimensions: a kernel, or a stack of matrices."""
    if len(bias) > 1:
        return stack
    # Fewer outputs than taps are rare, but for the last layer's one; a few experts are not.
    is_long = len(shape) == 3 and (shape[2] > _LONG_KERNEL or 1 < shape[0] < shape[2])
    if is_long and not bias and shape[1] != 1:
        note = "read as a stack of matrices; it may be a kernel of one dimension"
        return replace(stack, note=stack.note or note)
    turned = bias == (shape[1],) != (shape[0],) or (
        not (bias == (shape[0],) != (shape[1],)) and _DECONV.fullmatch(owner) is not None
    )
    note = "" if len(shape) > 3 else "read as a kernel of one dimension"
    return Inferred("deconv" if turned else "conv", note=note)


def _with_first_table(
    shapes: Mapping[str, Shape], found: dict[str, Inferred]
) -> dict[str, Inferred]:
    """A sequence may begin with an embedding that has a number for a name: its next layer reads
    its columns."""
    layers = [name for name in shapes if name in found and found[name].family != "scale"]
    if len(layers) < 2 or not re.fullmatch(r"(.*\.)?0\.weight", layers[0]):
        return found
    first, second = layers[:2]
    (rows, columns), into = shapes[first][:2], shapes[second][1]
    is_bare = f"{first.removesuffix('weight')}bias" not in shapes and len(shapes[first]) == 2
    if found[first].family == "linear" and is_bare and columns == into != rows:
        note = "guessed to be an embedding: the next layer reads its columns"
        found[first] = Inferred("embedding", note=note)
    return found


def _with_groups(shapes: Mapping[str, Shape], found: dict[str, Inferred]) -> dict[str, Inferred]:
    kernels = {name: shapes[name] for name, layer in found.items() if layer.family == "conv"}
    outputs = {name: _outputs(shapes[name], layer) for name, layer in found.items()}
    tables = {name for name, layer in found.items() if layer.family == "embedding"}
    for name, (groups, note) in kernel_groups(kernels, outputs, tables).items():
        found[name] = replace(found[name], groups=groups, note=note)
    return found


def _outputs(shape: Shape, layer: Inferred) -> int:
    """Channels that a layer gives to the next; 0 where that is not known."""
    if layer.family in ("linear", "conv"):
        return shape[1] if layer.transposed else shape[0]
    return shape[1] if layer.family in ("embedding", "deconv") else 0
