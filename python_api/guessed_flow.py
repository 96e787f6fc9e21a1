"""Which layers feed which, guessed from names and order where nothing better is known.

Layers are taken in the order in which modules were registered, which is the order of the data in
`nn.Sequential` and by custom elsewhere; each is paired with the layer before it where the sizes
chain. Attention, gated layers, experts, squeeze-excitation and branches beside a block are told by
the names that most models give them. What names and order cannot tell is lost with a reason, never
guessed: how the rows of a fused weight are laid out, what a cross attention reads, whether
attention and MLP with one normalisation are parallel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from python_api.attention_names import attention_in
from python_api.configs import config_of, setting
from python_api.decomposed.embedding import DecomposedEmbedding
from python_api.flow import Chain, Ended, Lost, Same, SideBySide, Step, Table, widths
from python_api.flow_binding import NOT_WATCHED, layer_of
from python_api.heads import HeadCounts
from python_api.layer_tree import Scope
from python_api.matrices import Matrix
from python_api.recurrent_pairs import Recurrent

__all__ = ["Guess"]

_BESIDE = frozenset({"downsample", "shortcut", "skip", "skip_connection", "residual"})
_EXCITE = frozenset({"se", "se_module", "se_layer", "squeeze_excite", "squeeze_excitation"})
_SIDE_BY_SIDE = frozenset({"experts", "branches", "towers"})
_ROUTERS = frozenset({"router", "gate", "gating"})
# Two layers that read the same input and are multiplied, by the names of well-known models.
_GATED = (("gate_proj", "up_proj"), ("w1", "w3"), ("wi_0", "wi_1"))
_TABLE_WORDS = ("pos", "embed", "wpe", "wte")
_POSITION_WORDS = ("pos", "wpe")
_PARALLEL = ("use_parallel_residual", "parallel_attn", "parallel_residual")
_UNDECIDED = (
    "one normalisation for attention and MLP: whether the MLP reads what attention wrote or stands "
    "beside it is not known without sk.trace or pairs="
)
_SIDE = (
    "whether it stands beside the block or comes after it is not known without sk.trace or pairs="
)
_SOMEWHERE = "positions are added somewhere: where is not known without sk.trace or pairs="
_CHOICE = "a dictionary of modules: which of them run is not known without sk.trace or pairs="


@dataclass(frozen=True, slots=True)
class _Part:
    """A child or parameter of a scope, in order."""

    name: str
    step: Step
    attends: bool = False
    """Whether it is an attention, and no more."""

    @property
    def is_table(self) -> bool:
        return isinstance(self.step, Table)

    @property
    def is_position(self) -> bool:
        return self.is_table and any(word in self.name.lower() for word in _POSITION_WORDS)


class Guess:
    """Makes steps of scopes.

    Args:
        counts: heads of attentions.
        known: the step of a scope of a known family, ``None`` of others.
    """

    def __init__(self, counts: HeadCounts, known: Callable[[Scope], Step | None]) -> None:
        self._counts = counts
        self._known = known

    def of(self, scope: Scope) -> Step | None:
        """What a module, or a prefix of names, does; ``None`` where it has no layer."""
        known = self._known(scope)
        if known is not None:
            return known
        if isinstance(scope.module, nn.RNNBase | nn.RNNCellBase):
            return Recurrent.of(scope)
        if isinstance(scope.module, nn.ModuleDict):
            steps = self._children(scope)
            lost = Lost(scope.path, _CHOICE)
            return Chain((SideBySide(tuple(map(_alone, steps))), lost)) if steps else None
        if scope.name in _SIDE_BY_SIDE and all(name.isdigit() for name in scope.children):
            steps = self._children(scope)
            if steps:
                return SideBySide(tuple(steps))
        return _in_order(list(self._parts(scope)), scope)

    def _children(self, scope: Scope) -> list[Step]:
        return [step for child in scope.children.values() if (step := self.of(child)) is not None]

    def _parts(self, scope: Scope) -> Iterator[_Part]:
        """The layers of a scope in the order of registration."""
        attention = attention_in(scope, self._counts)
        taken = frozenset() if attention is None else attention.units
        gated = _gated(scope)
        done: set[str] = set()
        for unit in [*scope.parameters, *scope.children]:
            if unit in done:
                continue
            if attention is not None and unit in taken:
                done |= taken
                yield _Part(scope.name, attention.step)
            elif unit in gated:
                done |= set(gated[unit])
                both = [part.step for name in gated[unit] for part in self._part(scope, name)]
                yield _Part(unit, SideBySide(tuple(both)))
            else:
                yield from self._part(scope, unit)

    def _part(self, scope: Scope, unit: str) -> Iterator[_Part]:
        """A parameter, or a child."""
        if unit in scope.parameters:
            step, child = _layer(scope, scope.parameters[unit]), None
        else:
            child = scope.children[unit]
            step = self.of(child)
        if step is not None:
            yield _Part(unit, step, child is not None and self._attends(child))

    def _attends(self, scope: Scope) -> bool:
        is_known = isinstance(scope.module, nn.MultiheadAttention)
        return is_known or attention_in(scope, self._counts) is not None


def _in_order(parts: Sequence[_Part], scope: Scope) -> Step | None:
    """The parts as a chain, with what is beside it."""
    sides = [part for part in parts[1:] if part.name in _BESIDE]
    parts = [part for i, part in enumerate(parts) if not i or part.name not in _BESIDE]
    if len(parts) > 1 and parts[0].is_position and not parts[1].is_table:
        parts = [_Part(parts[0].name, Chain((parts[0].step, Lost(scope.path, _SOMEWHERE)))),
                 *parts[1:]]  # fmt: skip
    attention = next((i for i, part in enumerate(parts) if part.attends), None)
    together = None if attention is None or len(parts) < attention + 2 else _are_parallel(scope)
    if attention is not None and together == "parallel":
        first, rest = _chain(parts[:attention]), _chain(parts[attention + 1 :])
        both = SideBySide(tuple(s for s in (parts[attention].step, rest) if s is not None))
        chain: Step | None = both if first is None else Chain((first, both))
    else:
        chain = _chain(parts, undecided=attention if together == "undecided" else None)
    for side in sides:
        assert chain is not None
        chain = _with_side(chain, side)
    return chain


def _with_side(chain: Step, side: _Part) -> Step:
    """A block with a layer that may stand beside it, or come after it, by their widths."""
    (into, out), (side_into, side_out) = widths(chain), widths(side.step)
    # Nothing leaves a block whose last layer is not watched.
    beside = into == side_into and out in (side_out, set())
    after = out == side_into
    if beside and (not after or side.name != "downsample"):
        return SideBySide((chain, side.step))
    if after and not beside:
        return Chain((chain, side.step))
    return Chain((SideBySide((chain, Ended(Chain((Lost(side.name, _SIDE), side.step))))),
                  Lost(side.name, _SIDE)))  # fmt: skip


def _chain(parts: Sequence[_Part], undecided: int | None = None) -> Step | None:
    steps: list[Step] = []
    has_experts = any(part.name in _SIDE_BY_SIDE for part in parts)
    for index, part in enumerate(parts):
        before = parts[index - 1] if index else None
        if part.name in _EXCITE and steps:
            steps.append(SideBySide((Same(), part.step)))
        elif part.name in _ROUTERS and has_experts:
            steps.append(SideBySide((Same(), Ended(part.step))))
        elif part.is_table and before is not None and (before.is_table or part.is_position):
            # Token and position embeddings are summed: both feed what comes next.
            steps[-1] = SideBySide((steps[-1], part.step))
        else:
            steps.append(part.step)
        if index == undecided:
            steps.append(Lost(part.name, _UNDECIDED))
    if len(steps) < 2:
        return steps[0] if steps else None
    return Chain(tuple(steps))


def _alone(step: Step) -> Step:
    """A part whose neighbours are not known."""
    return Chain((Lost("", _CHOICE), Ended(step)))


def _are_parallel(scope: Scope) -> str:
    """Whether attention and MLP of a block read the same: "parallel", "serial" or "undecided"."""
    for place in (None if scope.module is None else vars(scope.module), config_of(scope.module)):
        told = [setting(place, name) for name in _PARALLEL]
        known = [value for value in told if isinstance(value, bool)]
        if known:
            return "parallel" if known[0] else "serial"
    norms = [name for name in scope.children if _is_norm(name.lower())]
    return "undecided" if len(norms) == 1 else "serial"


def _is_norm(name: str) -> bool:
    return "norm" in name or name.rstrip("0123456789_").endswith("ln") or name.startswith("ln")


def _layer(scope: Scope, name: str) -> Step | None:
    """The layer of one parameter."""
    matrices = scope.of([name])
    if not matrices:
        return Lost(name, NOT_WATCHED.format(name)) if name in scope.hidden else None
    if _is_table(scope, name, matrices):
        return Table(tuple(matrices), is_oriented=matrices[0].source.is_table)
    return layer_of(scope, matrices)


def _is_table(scope: Scope, name: str, matrices: Sequence[Matrix]) -> bool:
    """Whether rows are looked up or added by position, so that the layer has no input."""
    if isinstance(scope.module, nn.Embedding | nn.EmbeddingBag | DecomposedEmbedding):
        return True
    if scope.module is not None and name.rpartition(".")[2] == "weight":
        return False
    words = ".".join(name.lower().split(".")[-2:])
    if "unembed" in words:
        return False
    if name == matrices[0].parameter and matrices[0].source.is_table:
        return True
    return matrices[0].kind == "parameter" and any(word in words for word in _TABLE_WORDS)


def _gated(scope: Scope) -> dict[str, tuple[str, str]]:
    """Unit -> both units of its gated pair, for the pairs of this scope."""
    units = {unit.lower(): (unit, names) for unit, names in scope.units()}
    groups: dict[str, tuple[str, str]] = {}
    for gate, up in _GATED:
        if gate not in units or up not in units:
            continue
        both = units[gate][0], units[up][0]
        matrices = scope.of([*units[gate][1], *units[up][1]])
        # Equal and not square: layers of a plain chain called w1, w2, w3 are not meant.
        if len(matrices) == 2 and matrices[0].shape == matrices[1].shape:
            m, n = matrices[0].shape
            if m != n:
                groups.update(dict.fromkeys(both, both))
    return groups
