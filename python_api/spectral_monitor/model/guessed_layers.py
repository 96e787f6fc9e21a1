"""What a layer is, where no module tells: from its name, its siblings and the whole set of shapes.

For state dicts, and for parameters of modules of unknown types. A weight's own shape says little: a
bias tells which side is the output, a recurrent weight its gates, a neighbour whether a kernel is
one of a group, which reads fewer channels than any layer gives, or than the layer before it in its
block gives. GPT-2's Conv1D, TransformerLens and stacked experts store (inputs, outputs); where both
sides are as long, layers of the same name elsewhere in the model tell, and weights beside it. What
is a guess carries a note that says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Literal

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
class GuessedLayer:
    """The kind of layer that a parameter of two or more dimensions belongs to."""

    family: Family
    transposed: bool = False
    """_Stored as (inputs, outputs)."""
    groups: int = 1
    """Of a convolution."""
    gates: tuple[str, ...] = ()
    """Of a recurrent weight."""
    note: str = ""
    """What was guessed."""


class GuessedLayers:
    """The guesses of `guess_layers` for one model, made when one is first asked for.

    Args:
        shapes: of all parameters, by qualified name, in the order of the layers.
    """

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self._shapes = shapes
        self._guesses: dict[str, GuessedLayer] | None = None

    def get(self, name: str) -> GuessedLayer | None:
        """The guess for a parameter; None where that has fewer than two dimensions."""
        if self._guesses is None:
            self._guesses = guess_layers(self._shapes)
        return self._guesses.get(name)


def guess_layers(shapes: Mapping[str, Shape]) -> dict[str, GuessedLayer]:
    """A guess for each parameter of two and more dimensions, by name.

    Args:
        shapes: of all parameters, by qualified name, in the order of the layers.
    """
    scopes: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        scopes.setdefault(path, {})[leaf] = shape
    stored = _stored_as(shapes)
    guesses = {
        name: _layer(name, shape, scopes[name.rpartition(".")[0]], stored, scopes.get(name, {}))
        for name, shape in shapes.items()
        if len(shape) >= 2
    }
    return _with_groups(shapes, _with_first_table(shapes, guesses))


def _layer(
    name: str,
    shape: Shape,
    siblings: Mapping[str, Shape],
    stored: Mapping[str, _Stored],
    inside: Collection[str],
) -> GuessedLayer:
    path, _, leaf = name.rpartition(".")
    if "absmax" in inside:
        return GuessedLayer("packed")
    if re.match(r"weight_(ih|hh|hr)(_l\d+)?(_reverse)?$", leaf):
        return _recurrent(leaf, siblings)
    if leaf in _FUSED:
        return GuessedLayer("attention")
    if leaf != "weight":
        return _plain(name, siblings)
    owner = _owner(path)
    bias = siblings.get("bias", ())
    if bias == shape or _NORM.fullmatch(owner):
        return GuessedLayer("scale")
    if len(shape) == 2:
        if not bias and _TABLE.fullmatch(owner) and not _NO_TABLE.match(owner):
            return GuessedLayer("embedding", note="an embedding by its name")
        layout = stored.get(name, _Stored(False))
        return GuessedLayer("linear", layout.transposed, note=layout.note)
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


def _plain(name: str, siblings: Mapping[str, Shape]) -> GuessedLayer:
    layout = _plain_orientation(name.rpartition(".")[2], siblings)
    return GuessedLayer("plain", layout.transposed, note=layout.note)


def _recurrent(leaf: str, siblings: Mapping[str, Shape]) -> GuessedLayer:
    ending = re.sub(r"^weight_(ih|hh|hr)", "", leaf)
    projection, hidden = (siblings.get(f"weight_{role}{ending}") for role in ("hr", "hh"))
    if leaf.startswith("weight_hr") or hidden is None:
        return GuessedLayer("recurrent")
    size = hidden[1] if projection is None else projection[1]
    return GuessedLayer("recurrent", gates=_GATES.get(hidden[0] // size, ()))


def _kernel(shape: Shape, bias: Shape, owner: str, stack: GuessedLayer) -> GuessedLayer:
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
    return GuessedLayer("deconv" if turned else "conv", note=note)


def _with_first_table(
    shapes: Mapping[str, Shape], guesses: dict[str, GuessedLayer]
) -> dict[str, GuessedLayer]:
    """A sequence may begin with an embedding that has a number for a name: its next layer reads
    its columns."""
    layers = [name for name in shapes if name in guesses and guesses[name].family != "scale"]
    if len(layers) < 2 or not re.fullmatch(r"(.*\.)?0\.weight", layers[0]):
        return guesses
    first, second = layers[:2]
    (rows, columns), into = shapes[first][:2], shapes[second][1]
    is_bare = f"{first.removesuffix('weight')}bias" not in shapes and len(shapes[first]) == 2
    if guesses[first].family == "linear" and is_bare and columns == into != rows:
        note = "guessed to be an embedding: the next layer reads its columns"
        guesses[first] = GuessedLayer("embedding", note=note)
    return guesses


def _with_groups(
    shapes: Mapping[str, Shape], guesses: dict[str, GuessedLayer]
) -> dict[str, GuessedLayer]:
    kernels = {name: shapes[name] for name, layer in guesses.items() if layer.family == "conv"}
    outputs = {name: _outputs(shapes[name], layer) for name, layer in guesses.items()}
    tables = {name for name, layer in guesses.items() if layer.family == "embedding"}
    for name, (groups, note) in _kernel_groups(kernels, outputs, tables).items():
        guesses[name] = replace(guesses[name], groups=groups, note=note)
    return guesses


def _outputs(shape: Shape, layer: GuessedLayer) -> int:
    """Channels that a layer gives to the next; 0 where that is not known."""
    if layer.family in ("linear", "conv"):
        return shape[1] if layer.transposed else shape[0]
    return shape[1] if layer.family in ("embedding", "deconv") else 0


# A kernel and the one before it, ``block.conv1.conv.weight``: what they may differ in.
_OWN_PARTS = 3
_DEPTHWISE = re.compile("depthwise|dwconv|conv_dw|dw_conv")
_IMAGES = re.compile("patch|image|pixel|visual|conv_in|rgb")


def _kernel_groups(
    kernels: Mapping[str, Shape], outputs: Mapping[str, int], tables: Collection[str]
) -> dict[str, tuple[int, str]]:
    """Kernel -> (its groups, what was guessed); those that are read as one alone are left out.

    Args:
        kernels: shapes (outputs, inputs of a group, taps...) by qualified name.
        outputs: layer -> channels that it gives, in the order of the layers; 0 where not known.
        tables: those of them that are embeddings, which no kernel follows in groups.
    """
    given = {_inputs_of_model(kernels, outputs), *outputs.values()}
    guesses: dict[str, tuple[int, str]] = {}
    before, neighbour = 0, ""
    for name, size in outputs.items():
        if name in kernels and _DEPTHWISE.search(name) and kernels[name][1] == 1:
            guesses[name] = kernels[name][0], "depthwise by its name"
        elif name in kernels and neighbour and not _reads_images(name, kernels[name]):
            # Branches side by side read the same channels.
            is_next = _share_a_block(name, neighbour) and (
                neighbour not in kernels or kernels[neighbour][1] != kernels[name][1]
            )
            groups, note = _group_count(kernels[name], before, given, is_next)
            if note:
                guesses[name] = groups, note
        if size:
            before, neighbour = 0 if name in tables else size, name
    return guesses


def _reads_images(name: str, shape: Shape) -> bool:
    return shape[1] in (1, 3, 4) and _IMAGES.search(name) is not None


def _inputs_of_model(kernels: Mapping[str, Shape], outputs: Mapping[str, int]) -> int:
    """Channels of the images, where a kernel is the first layer; 0 where none is."""
    first = next((name for name, size in outputs.items() if size), "")
    return kernels[first][1] if first in kernels else 0


def _group_count(
    shape: Shape, before: int, given: Collection[int], is_next: bool
) -> tuple[int, str]:
    outputs, inputs, *taps = shape
    if inputs == 1:
        if before == 1 or math.prod(taps) == 1:
            return 1, ""
        return outputs, "guessed to be depthwise: the layer before it gives more than 1 channel"
    groups, rest = divmod(before, inputs)
    if groups < 2 or rest or outputs % groups:
        return 1, ""
    description = f"{groups} groups of the {before} channels before it"
    # With as many channels as before or a multiple: else they may have been halved by a gate.
    if outputs % before == 0:
        if inputs not in given:
            return groups, f"guessed to be {description}: no layer gives {inputs}"
        # Kernels of one tap, as on the ways around a block, read what they say.
        if is_next and math.prod(taps) > 1:
            return groups, f"guessed to be {description}"
    is_plain = inputs in given and (outputs % before != 0 or math.prod(taps) == 1)
    return 1, "" if is_plain else f"read as one; it may be {description}"


def _share_a_block(name: str, other: str) -> bool:
    parts = name.split(".")
    pairs: Sequence[tuple[str, str]] = list(zip(parts, other.split("."), strict=False))
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return common >= len(parts) - _OWN_PARTS


# Weights of an MLP in stacks: what reads the input, and what gives the output.
_UP_AND_DOWN = (
    ("gate_up_proj", "down_proj"),
    ("up_proj", "down_proj"),
    ("gate_proj", "down_proj"),
    ("w1", "w2"),
    ("w3", "w2"),
    ("wi", "wo"),
)


@dataclass(frozen=True, slots=True)
class _Stored:
    """How a weight is stored, and by what that is known."""

    transposed: bool
    """Whether as (inputs, outputs)."""
    note: str = ""


_TURNED = _Stored(True, "stored as (inputs, outputs), by its bias")


def _stored_as(shapes: Mapping[str, Shape]) -> dict[str, _Stored]:
    """How each ``weight`` of two dimensions with a bias is stored.

    Args:
        shapes: of all parameters, by qualified name.
    """
    sure: dict[str, bool] = {}
    open_: list[str] = []
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        bias = shapes.get(f"{path}.bias" if path else "bias")
        if leaf != "weight" or len(shape) != 2 or bias is None:
            continue
        sides = [bias == (side,) for side in shape]
        if sides == [True, True]:
            open_.append(name)
        elif any(sides):
            sure[name] = sides == [False, True]
    votes: dict[str, set[bool]] = {}
    for name, turned in sure.items():
        votes.setdefault(_owner_name(name), set()).add(turned)
    layouts = {name: _TURNED if turned else _Stored(False) for name, turned in sure.items()}
    everywhere = set(sure.values())
    for name in open_:
        others = votes.get(_owner_name(name), everywhere)
        alike = "layers of its name are" if _owner_name(name) in votes else "all others are"
        if others == {True}:
            layouts[name] = _Stored(True, f"square, taken as stored (inputs, outputs), as {alike}")
        elif True in others:
            layouts[name] = _Stored(False, "square: which side is the output is not known")
        else:
            layouts[name] = _Stored(False)
    return layouts


def _owner_name(name: str) -> str:
    """``c_proj`` of ``h.0.mlp.c_proj.weight``."""
    return name.split(".")[-2] if "." in name else ""


def _plain_orientation(leaf: str, siblings: Mapping[str, Shape]) -> _Stored:
    """How a parameter is stored that is no module's ``weight``: ``W_Q``, ``gate_up_proj``.

    Args:
        leaf: its name in its module.
        siblings: shapes of all parameters of that module.
    """
    shape = siblings[leaf]
    layout = _by_bias(leaf, siblings)
    if layout is None and len(shape) == 3:
        layout = _by_counterpart(leaf, siblings)
    if layout is not None:
        return layout
    if leaf == "weight":
        return _Stored(False)
    # W_gate and W_in of one MLP have one bias.
    others = {_by_bias(name, siblings) for name in siblings
              if name[:2] == leaf[:2] == "W_" and len(siblings[name]) == len(shape)}  # fmt: skip
    if {stored.transposed for stored in others if stored is not None} == {True}:
        return _Stored(True, "taken as stored (inputs, outputs), as its siblings are")
    return _Stored(False)


def _by_bias(leaf: str, siblings: Mapping[str, Shape]) -> _Stored | None:
    *_, rows, columns = (1, *siblings[leaf])
    names = (f"b_{leaf.removeprefix('W_')}", f"{leaf}_bias", "bias" if leaf == "weight" else "")
    bias = next((siblings[name] for name in names if name in siblings), None)
    if bias is None or not bias or rows == columns or bias[-1] not in (rows, columns):
        return None
    return _TURNED if bias[-1] == columns else _Stored(False)


def _by_counterpart(leaf: str, siblings: Mapping[str, Shape]) -> _Stored | None:
    """How a weight is stored, by the weight on the other side of the hidden layer."""
    for up, down in _UP_AND_DOWN:
        sizes = [len(siblings.get(name, ())) for name in (up, down)]
        if leaf not in (up, down) or sizes != [3, 3]:
            continue
        (_, a, b), (_, c, d) = siblings[up], siblings[down]
        as_usual = b == c and a in (d, 2 * d)
        turned = a == d and b in (c, 2 * c)
        if as_usual != turned:
            note = f"stored as (inputs, outputs), by {down if leaf == up else up}"
            return _Stored(True, note) if turned else _Stored(False)
    return None
