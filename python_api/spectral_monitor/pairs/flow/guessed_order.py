"""The order of a module's layers as it is guessed: one after the other, and what is not.

Layers are a chain in the order in which they were registered, but for tables that are summed,
branches beside a block, squeeze-excitation, experts and their routers, attention beside the MLP.
What names and widths do not tell is lost, with a reason that says what would tell it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from spectral_monitor.model.config import config_of, setting
from spectral_monitor.model.layer_tree import Scope
from spectral_monitor.pairs.flow.steps import (
    Attend,
    Chain,
    Ended,
    Layer,
    Lost,
    Record,
    Same,
    SideBySide,
    Step,
    Stream,
    Table,
)
from spectral_monitor.pairs.ports import Port

SIDE_BY_SIDE = frozenset({"experts", "branches", "towers"})
_BESIDE = frozenset({"downsample", "shortcut", "skip", "skip_connection", "residual"})
_EXCITE = frozenset({"se", "se_module", "se_layer", "squeeze_excite", "squeeze_excitation"})
_FIRST, _LAST = frozenset({"project_in", "proj_in"}), frozenset({"project_out", "proj_out"})
_IN_MLP = re.compile(r"(fc|lin|linear|dense|w|ff|ffn|mlp)_?\d*($|_)|.*(intermediate|hidden)|wi|up_")
_ATTENTION = re.compile(r"(self_?)?att(n|ention)")
_FEED_FORWARD = re.compile(r"(mlp|ffn?|feed_?forward|moe|experts)")
_HEADS = frozenset({"lm_head", "classifier", "score", "qa_outputs"})
_POSITION_WORDS = ("pos", "wpe")
_PARALLEL = ("use_parallel_residual", "parallel_attn", "parallel_residual")
_UNTOLD = "without sk.trace or pairs="
_UNDECIDED = (
    "whether the MLP of a block reads what attention wrote or stands beside it is not known "
    f"{_UNTOLD}: the block has one normalisation, or names that models of both kinds have"
)
_SIDE = f"whether it stands beside the block or comes after it is not known {_UNTOLD}"
_SOMEWHERE = f"positions are added somewhere: where is not known {_UNTOLD}"
_AMONG_EXPERTS = f"beside experts: what it does there is not known {_UNTOLD}"
_HEAD = (
    f"a head with the weights of a table, before other layers: what reads it is not known {_UNTOLD}"
)
_POOLED = f"what it pools, and what reads it, is not known {_UNTOLD}"
_BESIDE_ATTENTION = (
    f"beside an attention, as gates of its output are: what it does is not known {_UNTOLD}"
)
_MLP_FIRST = (
    "a block whose MLPs are not after its attention: in which order they run is not known "
    f"{_UNTOLD}"
)
_HEAD_FIRST = f"a head before other layers: what it reads and what reads it is not known {_UNTOLD}"
_TABLE_LATER = f"a table after other layers: what reads it is not known {_UNTOLD}"
_OTHER_KIND = f"towers of several kinds of input: how they are joined is not known {_UNTOLD}"
_KINDS = (
    ("text", "language"),
    ("vision", "visual", "image", "img", "video", "pixel"),
    ("audio", "speech", "acoustic"),
)
_ALIKE = (
    "it has the square shape of the one before it, which it may read or stand beside: which is not "
    f"known {_UNTOLD}"
)


@dataclass(frozen=True, slots=True)
class Part:
    """A child or parameter of a module, in order."""

    name: str
    step: Step
    attends: bool = False
    """Whether it is an attention, and no more."""
    is_ambiguous: bool = False
    """Whether models with and without parallel blocks have its names."""
    is_head: bool = False
    """Whether it has the weights of a table, which it does not look up."""

    @property
    def is_table(self) -> bool:
        """Whether rows are looked up."""
        return isinstance(self.step, Table)

    @property
    def is_position(self) -> bool:
        """Whether they are looked up by position."""
        return self.is_table and any(word in self.name.lower() for word in _POSITION_WORDS)

    @property
    def kind(self) -> int | None:
        """The kind of input that the part's name speaks of."""
        words = self.name.lower()
        return next((i for i, kind in enumerate(_KINDS) if any(w in words for w in kind)), None)

    @property
    def is_router(self) -> bool:
        """Whether the part chooses among experts."""
        return self.name.endswith(("router", "gate", "gating"))


class _Ends(Record):
    """Notes what reads the stream that a step is started with."""

    def __init__(self) -> None:
        super().__init__()
        self.start = Stream()
        self.entries: list[Port] = []

    def join(self, before: Stream, entries: Sequence[Port], reason: str) -> None:
        if before is self.start:
            self.entries += entries


def _widths(step: Step) -> tuple[set[int], set[int]]:
    """How many channels a step takes and gives; more than one number where its parts differ."""
    ends = _Ends()
    after = step.run(ends, ends.start)
    return {port.channels for port in ends.entries}, {port.channels for port in after.ports}


def in_order(parts: Sequence[Part], scope: Scope) -> Step | None:
    """The parts of a module, with what is beside them; ``None`` where there is none."""
    if any(part.name == "experts" for part in parts):
        return _mixture(parts)
    if _is_out_of_order(parts):
        return all_apart([part.step for part in parts], scope.path, _MLP_FIRST)
    sides = [part for part in parts[1:] if part.name in _BESIDE]
    parts = [part for i, part in enumerate(parts) if not i or part.name not in _BESIDE]
    parts = sorted(parts, key=lambda part: (part.name in _LAST) - (part.name in _FIRST))
    if len(parts) > 1 and parts[0].is_position and not parts[1].is_table:
        parts[0] = Part(parts[0].name, Chain((parts[0].step, Lost(scope.path, _SOMEWHERE))))
    block = _block(parts, scope)
    for side in sides:
        block = _with_side(block, side) if block is not None else side.step
    return block


def _block(parts: Sequence[Part], scope: Scope) -> Step | None:
    """The parts as a chain, but for an attention and the MLP that may stand beside it."""
    at = next((i for i, part in enumerate(parts) if part.attends), len(parts))
    how = _are_parallel(scope, parts[at]) if at + 1 < len(parts) else "serial"
    if how == "serial":
        return chain(parts)
    before, rest = chain(parts[:at]), chain(parts[at + 1 :])
    assert rest is not None
    if how == "parallel":
        steps: tuple[Step, ...] = (SideBySide((parts[at].step, rest)),)
    else:
        steps = (parts[at].step, Lost(scope.path, _UNDECIDED), rest)
    return Chain(steps if before is None else (before, *steps))


def _are_parallel(scope: Scope, attention: Part) -> str:
    """Whether attention and MLP of a block read the same: "parallel", "serial" or "undecided"."""
    for place in (None if scope.module is None else vars(scope.module), config_of(scope.module)):
        settings = [setting(place, name) for name in _PARALLEL]
        flags = [value for value in settings if isinstance(value, bool)]
        if flags:
            return "parallel" if flags[0] else "serial"
    norms = [name for name in scope.children if _is_norm(name.lower())]
    return "undecided" if len(norms) == 1 or attention.is_ambiguous else "serial"


def _is_norm(name: str) -> bool:
    return "norm" in name or name.rstrip("0123456789_").endswith("ln") or name.startswith("ln")


def _with_side(block: Step, side: Part) -> Step:
    """A block with a layer that may stand beside it, or come after it, by their widths."""
    (into, out), (side_into, side_out) = _widths(block), _widths(side.step)
    # Nothing leaves a block whose last layer is not watched.
    beside = into == side_into and out in (side_out, set())
    after = out == side_into
    if beside and (not after or side.name != "downsample"):
        return SideBySide((block, side.step))
    if after and not beside:
        return Chain((block, side.step))
    return Chain((SideBySide((block, _apart(side, _SIDE))), Lost(side.name, _SIDE)))


def _mixture(parts: Sequence[Part]) -> Step:
    """Experts side by side, with those that every input takes; routers read and write nothing."""
    steps: list[Step] = []
    lost: list[Step] = []
    for part in parts:
        if part.name == "experts" or (part.name.startswith("shared") and not part.is_router):
            steps.append(part.step)
        elif part.is_router:
            steps.append(Ended(part.step))
        else:
            steps.append(_apart(part, _AMONG_EXPERTS))
            lost = [Lost(part.name, _AMONG_EXPERTS)]
    return Chain((SideBySide(tuple(steps)), *lost)) if lost else SideBySide(tuple(steps))


def _apart(part: Part, why: str) -> Step:
    """A part of which neither what it reads nor what reads it is known."""
    return Ended(Chain((Lost(part.name, why), part.step)))


def _is_out_of_order(parts: Sequence[Part]) -> bool:
    """Whether a block has an MLP before its attention, or narrow layers around it."""
    names = [part.name.lower() for part in parts]
    attend = [part.attends or bool(_ATTENTION.match(part.name.lower())) for part in parts]
    at = attend.index(True) if any(attend) else None
    return any("macaron" in name for name in names) or (
        at is not None
        and ("bottleneck" in names or any(_FEED_FORWARD.match(name) for name in names[:at]))
    )


def all_apart(steps: Sequence[Step], name: str, why: str) -> Step:
    """Parts of which none is known to read another."""
    lost = Lost(name, why)
    return Chain((SideBySide(tuple(Ended(Chain((lost, step))) for step in steps)), lost))


def _may_stand_beside(before: Part, part: Part) -> bool:
    """Whether two layers of one square shape may as well read the same, as keys and values do:
    names that end in a number are in order."""
    if part.is_head or not (isinstance(before.step, Layer) and isinstance(part.step, Layer)):
        return False
    into, out = _widths(before.step)
    is_square = into == out and len(into) == 1 and _widths(part.step) == (into, out)
    return is_square and not (before.name[-1:].isdigit() and part.name[-1:].isdigit())


def _is_beside_attention(before: Sequence[Part], part: Part) -> bool:
    """Whether a layer in the module of an attention may read what the attention reads: a gate of
    its output has the place of an MLP's first layer, and another name."""
    if part.attends or not isinstance(part.step, Layer) or _IN_MLP.match(part.name.lower()):
        return False
    attentions = [one for one in before if isinstance(one.step, Attend) and not one.attends]
    return bool(attentions) and _widths(part.step)[0] == _widths(attentions[-1].step)[0]


def _apart_for(parts: Sequence[Part], index: int) -> str:
    """Why neither what a part reads nor what reads it is told by order; empty where it is."""
    part, before = parts[index], parts[:index]
    if part.is_head and index + 1 < len(parts):
        return _HEAD
    if part.name in _HEADS and index + 1 < len(parts):
        return _HEAD_FIRST
    if part.name == "pooler" and before:
        return _POOLED
    if before and _may_stand_beside(before[-1], part):
        return _ALIKE
    return _BESIDE_ATTENTION if _is_beside_attention(before, part) else ""


def chain(parts: Sequence[Part]) -> Step | None:
    """The parts as a chain; what order does not tell stays apart."""
    steps: list[Step] = []
    has_kinds = len({part.kind for part in parts} - {None}) > 1
    for index, part in enumerate(parts):
        before = parts[index - 1] if index else None
        apart = _apart_for(parts, index)
        if has_kinds and before is not None and part.kind != before.kind:
            steps.append(Lost(part.name, _OTHER_KIND))
        if apart:
            steps += [_apart(part, apart), Lost(part.name, apart)]
        elif part.name in _EXCITE and steps:
            steps.append(SideBySide((Same(), part.step)))
        elif part.is_table and before is not None and (before.is_table or part.is_position):
            # Token and position embeddings are summed: both feed what comes next.
            steps[-1] = SideBySide((steps[-1], part.step))
        elif part.is_table and before is not None:
            steps += [part.step, Lost(part.name, _TABLE_LATER)]
        else:
            steps.append(part.step)
    if len(steps) < 2:
        return steps[0] if steps else None
    return Chain(tuple(steps))
