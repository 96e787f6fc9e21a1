"""Which matrices a parameter means, and which of them a monitor watches.

A *rule* reads one parameter (with the module that owns it) and answers with the matrices it
means, as views, or with a `Skip` that says why it means none. `MatrixRegistry` finds the rule;
`find_matrices` applies it to a whole model and keeps every skipped parameter with its reason,
so that nothing disappears silently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from spectral_monitor.model.guessed_layers import GuessedLayers
from spectral_monitor.model.layer_shapes import dense_type, holds_a_layer, misfit
from spectral_monitor.model.matrix import Form, Kept, Matrix, MatrixView, joined, why_not_now
from spectral_monitor.model.names import (
    check_all_matched,
    check_distinct,
    distinct_name,
    matches,
    renamed,
)
from spectral_monitor.model.not_matrices import why_no_matrix
from spectral_monitor.model.submatrices import submatrix
from torch import Tensor, nn

from spectral_kernels.entry.results import Decomposed
from spectral_kernels.runtime.memory import place

if TYPE_CHECKING:
    from spectral_monitor.model.matrix import Kept


@dataclass(frozen=True, slots=True)
class Skip:
    """A rule's answer for a parameter that is not watched.

    Example:
        >>> registry = sk.default_registry()
        >>> registry.register("head.weight", lambda info: sk.Skip("not of interest"))
    """

    reason: str
    is_layer: bool = False
    """A matrix that is not watched, see `Skipped.is_layer`."""


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """What a rule sees of one parameter.

    Example:
        >>> registry = sk.default_registry()
        >>> registry.register("*", lambda info: sk.Skip(f"{info.leaf} of no interest"))
    """

    name: str
    """Qualified name, ``layers.0.attn.in_proj_weight``."""
    leaf: str
    """Last part of the name, ``in_proj_weight``."""
    tensor: Tensor
    """Of the weight of a decomposed layer, which is no parameter, a tensor on the meta device with
    the dense layer's shape."""
    module: nn.Module | None
    """The module that owns the parameter; ``None`` where only tensors were given."""
    heads: int | None
    """Attention heads of the module or its parent, if anything tells."""
    parent: nn.Module | None = None
    """The module that holds that module."""
    guesses: GuessedLayers | None = None
    """What names and shapes of the whole model tell of each of its parameters."""
    factors: Decomposed | None = None
    """What there is in place of the weight of a decomposed layer."""
    factor_of: str | None = None
    """The name of the weight that this parameter is a factor of."""
    form: Form = ""
    """Of a parametrized weight (`spectral_monitor.model.parametrized`), which one this is."""
    made_by: str = ""
    """How that weight is computed, such as ``spectral_norm``; of its factors, too."""
    made_of: tuple[str, ...] = ()
    """What of: the parameters' names. Of the raw one, its own."""
    origin: Tensor | None = None
    """The parameter that a computed weight has its dtype and device from."""
    sample: Callable[[], Tensor | None] | None = None
    """Gives that parameter, as it is now."""


Rule = Callable[[ParameterInfo], "Sequence[MatrixView] | Skip"]


class MatrixRegistry:
    """Finds the rule of a parameter: by name pattern first, then by the owner's type.

    Later registrations win, so a user's rule overrides a built-in one.

    Args:
        fallback: the rule of parameters that no registration fits; `default_registry` has one.

    Example:
        >>> registry = sk.default_registry()
        >>> registry.register(torch.nn.Linear, lambda p: [sk.MatrixView("linear", lambda t: t.mT)])
        >>> registry.register("*.head.*", lambda p: sk.Skip("an adapter"))
        >>> monitor = sk.SpectralMonitor(torch.nn.Linear(4, 3), registry=registry)
        >>> monitor.matrices[0].shape
        (4, 3)
    """

    def __init__(self, fallback: Rule) -> None:
        self._fallback = fallback
        self._names: list[tuple[str, Rule]] = []
        self._types: dict[type[nn.Module], Rule] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> MatrixRegistry:
        copied = MatrixRegistry(self._fallback)
        copied._names, copied._types = list(self._names), dict(self._types)
        return copied

    def __reduce__(self) -> str:
        raise TypeError(
            "a MatrixRegistry holds functions and cannot be pickled; make it anew, and a monitor "
            "from its state_dict()"
        )

    def register(self, target: type[nn.Module] | str, rule: Rule) -> None:
        """Use ``rule`` for parameters of a module type ``target``, or with names that fit it as a
        pattern; it turns a `ParameterInfo` into a list of `MatrixView`, or into a `Skip`."""
        if isinstance(target, str):
            self._names.insert(0, (target, rule))
        elif isinstance(target, type) and issubclass(target, nn.Module):
            self._types[target] = rule
        else:
            raise TypeError(f"expected a module type or a name pattern, got {target!r}")

    def rule_for(self, info: ParameterInfo) -> Rule:
        """The rule that reads the parameter of this ``info``."""
        for pattern, rule in self._names:
            if matches(info.name, pattern):
                return rule
        if info.factor_of is not None:
            return _factor
        own, dense = type(info.module).__mro__, dense_type(info.module).__mro__
        # A decomposed layer's own types come first, then those of the layer with a weight.
        for base in (*own[:-2], *dense):
            if base in self._types:
                return self._types[base]
        return self._fallback


def _factor(info: ParameterInfo) -> Skip:
    made = f", by {info.made_by}" if info.made_by else ""
    return Skip(f"a factor of {info.factor_of}{made}")


def why_not_a_matrix(tensor: Tensor) -> str | None:
    """Why a parameter cannot be analysed at all, whatever module owns it; else ``None``."""
    if torch.nn.parameter.is_lazy(tensor):
        return "not initialised yet (lazy): make the monitor after the first forward pass"
    reason = why_not_now(tensor)
    if reason is not None:
        return reason
    if tensor.dim() < 2:
        return f"{tensor.dim()}-D: biases, scales and other vectors are not matrices"
    if tensor.numel() == 0:
        return "empty"
    return None


Parameter = tuple[ParameterInfo, Callable[[], Kept | None]]
"""What is known of a parameter, and a getter that sees later replacements."""


def _unreadable(info: ParameterInfo) -> Skip | None:
    """Why there are no numbers to analyse, whatever rule reads the parameter."""
    if info.factors is not None:
        reasons = {name: why_not_a_matrix(x) for name, x in info.factors._asdict().items()}
        reason_of_factor = next(
            (f"{name}: {reason}" for name, reason in reasons.items() if reason), None
        )
        return None if reason_of_factor is None else Skip(reason_of_factor, is_layer=True)
    reason = why_not_a_matrix(info.tensor)
    if reason is None:
        return None
    if info.factor_of is not None:
        return _factor(info)
    if holds_a_layer(info.module, info.leaf):
        # A shard is 1-D or empty, which is not what is wrong with it.
        in_place = not torch.nn.parameter.is_lazy(info.tensor)
        odd = misfit(info.module, info.leaf, info.tensor) if in_place else None
        return Skip(odd or reason, is_layer=True)
    named = why_no_matrix(info.name, may_be_buffer=info.module is None)
    has_sides = torch.nn.parameter.is_lazy(info.tensor) or info.tensor.dim() > 1
    return Skip(reason, is_layer=named is None and has_sides)


def find_matrices(
    parameters: Sequence[Parameter],
    registry: MatrixRegistry,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> tuple[list[Matrix], list[Skipped]]:
    """The matrices to watch and the parameters that are not, in the order given.

    ``include`` and ``exclude`` hold patterns (`model.names`) that are held against the
    matrix's name, its parameter's name and, where weights are tied, the other names. A block
    such as ``lstm.weight_ih_l0[gate g]`` becomes a matrix of its own when an ``include``
    pattern spells out its bracket.

    Raises:
        ValueError: a pattern fits nothing.
    """
    owners = group_tied(parameters)
    own_names = {info.name for info, _ in parameters}
    matrices: list[Matrix] = []
    skipped: list[Skipped] = []
    for info, get, aliases in owners:
        shape = () if torch.nn.parameter.is_lazy(info.tensor) else tuple(info.tensor.shape)
        views = _unreadable(info) or registry.rule_for(info)(info)
        if isinstance(views, Skip):
            skipped.append(Skipped(info.name, shape, views.reason, views.is_layer))
            continue
        called = distinct_name(info.name, own_names)
        for index, view in enumerate(views):
            matrix = _matrix_of(info, view, called, aliases, get)
            if info.factors is not None:
                matrix = _decomposed(matrix, info.factors, index, len(views))
            matrices.append(matrix)
            matrices.extend(_blocks_asked_for(matrix, include))
    check_distinct([matrix.name for matrix in matrices])
    return select(matrices, skipped, include, exclude)


def _matrix_of(
    info: ParameterInfo,
    source: MatrixView,
    called: str,
    aliases: tuple[str, ...],
    get: Callable[[], Kept | None],
) -> Matrix:
    shaped = info.tensor.detach() if source.view is None else source.view(info.tensor.detach())
    if shaped.dim() != 2:
        raise ValueError(
            f"{info.name}{source.suffix}: the rule for {tuple(info.tensor.shape)} made "
            f"{tuple(shaped.shape)}; expected two dimensions"
        )
    shape = (shaped.shape[0], shaped.shape[1])
    note = joined(source.note, _told_form(info), renamed(info.name, called))
    if info.form == "raw":
        called += "[raw]"
    return Matrix(
        called + source.suffix,
        info.name,
        shape,
        replace(source, note=note) if note else source,
        aliases,
        get,
        form=info.form,
        made_of=info.made_of,
        stored=tuple(info.tensor.shape),
        sample=info.sample,
    )


def _told_form(info: ParameterInfo) -> str:
    if not info.form:
        return ""
    made_of = ", ".join(info.made_of)
    if info.form == "raw":
        return f"raw: {made_of} before {info.made_by}"
    return f"effective: {info.made_by} of {made_of}, computed when measured"


def _decomposed(dense: Matrix, factors: Decomposed, index: int, count: int) -> Matrix:
    """The matrix that a rule found in the dense layer's weight, as these factors have it."""
    *batch, m, k = factors.U.shape
    shape = (m, factors.Vh.shape[-1])
    if dense.shape != shape or count != math.prod(batch):
        raise ValueError(
            f"{dense.name}: the rule made {count} matrices, this one {dense.shape}; expected "
            f"{math.prod(batch)} of shape {shape}, as the factors of a decomposed layer give"
        )
    return replace(dense, inner=k, entry=index if batch else None)


def _blocks_asked_for(whole: Matrix, include: Sequence[str] | None) -> list[Matrix]:
    """Blocks that a pattern names with their bracket: ``*`` alone means whole matrices."""
    asked = [pattern for pattern in include or () if "[" in pattern]
    return [
        submatrix(whole, block.label, rows=[(block.start, block.stop)])
        for block in whole.source.blocks
        if any(matches(f"{whole.name}[{block.label}]", pattern) for pattern in asked)
    ]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A parameter (or part) that is not watched, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str
    is_layer: bool = False
    """A matrix that is not watched: its neighbours are not consecutive layers then."""


def _names_of(matrix: Matrix) -> tuple[str, ...]:
    own = matrix.made_of if matrix.form == "raw" else ()
    return (matrix.name, matrix.parameter, *matrix.aliases, *own)


def _check_patterns(
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
    matrices: Sequence[Matrix],
    skipped: Sequence[Skipped],
) -> None:
    all_names = dict.fromkeys(name for matrix in matrices for name in _names_of(matrix))
    all_names.update(dict.fromkeys(row.name for row in skipped))
    check_all_matched("include", include or (), all_names)
    check_all_matched("exclude", exclude or (), all_names)


def select(
    matrices: Sequence[Matrix],
    skipped: list[Skipped],
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
) -> tuple[list[Matrix], list[Skipped]]:
    """The matrices that the patterns choose, and all that are not watched.

    Raises:
        ValueError: a pattern fits nothing.
    """
    _check_patterns(include, exclude, matrices, skipped)
    kept: list[Matrix] = []
    for matrix in matrices:
        names = _names_of(matrix)
        out = next((p for p in exclude or () if any(matches(n, p) for n in names)), None)
        if out is not None:
            skipped.append(Skipped(matrix.name, matrix.shape, f"excluded by {out!r}", True))
        elif include is not None and not any(matches(n, p) for n in names for p in include):
            skipped.append(Skipped(matrix.name, matrix.shape, "not in include", True))
        else:
            kept.append(matrix)
    return kept, skipped


def group_tied(
    parameters: Sequence[Parameter],
) -> list[tuple[ParameterInfo, Callable[[], Kept | None], tuple[str, ...]]]:
    """Each parameter once, under the first of its names, with its getter and its other names.

    Tied is what has the same values in the same order in the same memory. That is so of what a
    module shares, and of the tensors that a state dict has in its place; parts of one buffer, and
    a weight and its transpose, are different matrices.
    """
    first: dict[Hashable, int] = {}
    groups: list[tuple[ParameterInfo, Callable[[], Kept | None], list[str]]] = []
    for info, get in parameters:
        place = first.setdefault(_tie_key(info), len(groups))
        if place == len(groups):
            groups.append((info, get, []))
        elif info.name != groups[place][0].name and info.name not in groups[place][2]:
            groups[place][2].append(info.name)
    return [(info, get, tuple(names)) for info, get, names in groups]


def _tie_key(info: ParameterInfo) -> Hashable:
    # Factors are tied where all three are, and a computed weight where its parameter is.
    if info.factors is not None:
        return tuple(map(_memory, info.factors))
    if info.origin is not None and info.form == "effective":
        return (info.made_by, _memory(info.origin))
    return _memory(info.tensor)


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are tied, see `group_tied`."""
    return a is b or _memory(a) == _memory(b)


def _memory(tensor: Tensor) -> Hashable:
    """What tells two tensors apart: where they lie and how, or who they are."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return id(tensor)
    if not tensor.numel() or tensor.data_ptr() == 0:
        return id(tensor)
    return place(tensor), tensor.is_neg(), tensor.is_conj()
