"""Which side of a stored weight is its output: (out, in) as in PyTorch, or (in, out).

GPT-2's Conv1D, TransformerLens and stacked experts multiply ``x @ W``. A bias has the length of the
output; where both sides are as long, layers of the same name elsewhere in the model tell, and
weights beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Stored", "plain_orientation", "stored_as"]

Shape = tuple[int, ...]

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
class Stored:
    """How a weight is stored, and by what that is known."""

    transposed: bool
    """Whether as (inputs, outputs)."""
    note: str = ""


_TURNED = Stored(True, "stored as (inputs, outputs), by its bias")


def stored_as(shapes: Mapping[str, Shape]) -> dict[str, Stored]:
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
        votes.setdefault(_layer(name), set()).add(turned)
    found = {name: _TURNED if turned else Stored(False) for name, turned in sure.items()}
    everywhere = set(sure.values())
    for name in open_:
        told = votes.get(_layer(name), everywhere)
        alike = "layers of its name are" if _layer(name) in votes else "all others are"
        if told == {True}:
            found[name] = Stored(True, f"square, taken as stored (inputs, outputs), as {alike}")
        elif True in told:
            found[name] = Stored(False, "square: which side is the output is not known")
        else:
            found[name] = Stored(False)
    return found


def _layer(name: str) -> str:
    """``c_proj`` of ``h.0.mlp.c_proj.weight``."""
    return name.split(".")[-2] if "." in name else ""


def plain_orientation(leaf: str, siblings: Mapping[str, Shape]) -> Stored:
    """How a parameter is stored that is no module's ``weight``: ``W_Q``, ``gate_up_proj``.

    Args:
        leaf: its name in its module.
        siblings: shapes of all parameters of that module.
    """
    shape = siblings[leaf]
    known = _by_bias(leaf, siblings)
    if known is None and len(shape) == 3:
        known = _by_counterpart(leaf, siblings)
    if known is not None:
        return known
    if leaf == "weight":
        return Stored(False)
    # W_gate and W_in of one MLP have one bias.
    others = {_by_bias(name, siblings) for name in siblings
              if name[:2] == leaf[:2] == "W_" and len(siblings[name]) == len(shape)}  # fmt: skip
    if {stored.transposed for stored in others if stored is not None} == {True}:
        return Stored(True, "taken as stored (inputs, outputs), as its siblings are")
    return Stored(False)


def _by_bias(leaf: str, siblings: Mapping[str, Shape]) -> Stored | None:
    *_, rows, columns = (1, *siblings[leaf])
    names = (f"b_{leaf.removeprefix('W_')}", f"{leaf}_bias", "bias" if leaf == "weight" else "")
    bias = next((siblings[name] for name in names if name in siblings), None)
    if bias is None or not bias or rows == columns or bias[-1] not in (rows, columns):
        return None
    return _TURNED if bias[-1] == columns else Stored(False)


def _by_counterpart(leaf: str, siblings: Mapping[str, Shape]) -> Stored | None:
    """By the weight on the other side of the hidden layer."""
    for up, down in _UP_AND_DOWN:
        sizes = [len(siblings.get(name, ())) for name in (up, down)]
        if leaf not in (up, down) or sizes != [3, 3]:
            continue
        (_, a, b), (_, c, d) = siblings[up], siblings[down]
        as_usual = b == c and a in (d, 2 * d)
        turned = a == d and b in (c, 2 * c)
        if as_usual != turned:
            note = f"stored as (inputs, outputs), by {down if leaf == up else up}"
            return Stored(True, note) if turned else Stored(False)
    return None
