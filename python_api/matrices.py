"""Which matrices a parameter means, and which of them a monitor watches.

A *rule* reads one parameter (with the module that owns it) and answers with the matrices it
means, as views, or with a `Skip` that says why it means none. `MatrixRegistry` finds the rule;
`find_matrices` applies it to a whole model and keeps every skipped parameter with its reason,
so that nothing disappears silently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from python_api.globs import check_all_matched, matches

__all__ = [
    "Block",
    "Matrix",
    "MatrixRegistry",
    "MatrixView",
    "ParameterInfo",
    "Rule",
    "Skip",
    "Skipped",
    "find_matrices",
]


@dataclass(frozen=True, slots=True)
class Block:
    """Rows ``start:stop`` of a matrix that mean something on their own, such as one gate."""

    label: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class MatrixView:
    """One matrix inside a parameter, and how its two sides connect to other layers.

    The matrix maps inputs (columns) to outputs (rows). A part of a layer, such as one group of
    a convolution, carries which channels of the whole layer it reads and writes.
    """

    kind: str
    """Family for group averages: linear, embedding, conv, recurrent, attention, parameter."""
    view: Callable[[Tensor], Tensor] | None = None
    """Parameter -> 2-D view; ``None`` where the parameter is the matrix already."""
    suffix: str = ""
    """Ending of the name, such as ``[group 1]``."""
    taps: int = 1
    """Columns per input channel: the size of a convolution's kernel."""
    centre: int = 0
    """The column, among the taps of a channel, that alignment uses."""
    first_output: int = 0
    outputs: int | None = None
    """Output channels of the whole layer; ``None``: this matrix has them all."""
    first_input: int = 0
    inputs: int | None = None
    """Input channels of the whole layer; ``None``: this matrix has them all."""
    is_table: bool = False
    """Rows are looked up: what flows on lies along the columns, so Vh serves as U."""
    blocks: tuple[Block, ...] = ()
    output_block: str | None = None
    """The block of rows whose part of U stands for the output (an LSTM's gate g)."""


@dataclass(frozen=True, slots=True)
class Skip:
    """A rule's answer for a parameter that is not watched."""

    reason: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A parameter (or part) that is not watched, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str
    is_layer: bool = False
    """A matrix that is not watched: its neighbours are not consecutive layers then."""


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """What a rule sees of one parameter."""

    name: str
    """Qualified name, ``layers.0.attn.in_proj_weight``."""
    leaf: str
    """Last part of the name, ``in_proj_weight``."""
    tensor: Tensor
    module: nn.Module | None
    """The module that owns the parameter; ``None`` where only tensors were given."""
    heads: int | None
    """Attention heads of the module or its parent, if anything tells."""


Rule = Callable[[ParameterInfo], "Sequence[MatrixView] | Skip"]


class MatrixRegistry:
    """Finds the rule of a parameter: by name pattern first, then by the owner's type.

    Later registrations win, so a user's rule overrides a built-in one::

        registry = default_registry()
        registry.register(MyLinear, lambda p: [MatrixView("linear", lambda t: t.mT)])
        registry.register("*.lora_A*", lambda p: Skip("adapter"))
        SpectralMonitor(model, registry=registry)
    """

    def __init__(self, fallback: Rule) -> None:
        self._fallback = fallback
        self._names: list[tuple[str, Rule]] = []
        self._types: dict[type[nn.Module], Rule] = {}

    def register(self, target: type[nn.Module] | str, rule: Rule) -> None:
        """Use ``rule`` for parameters of a module type, or with names that fit a pattern."""
        if isinstance(target, str):
            self._names.insert(0, (target, rule))
        elif isinstance(target, type) and issubclass(target, nn.Module):
            self._types[target] = rule
        else:
            raise TypeError(f"expected a module type or a name pattern, got {target!r}")

    def rule_for(self, info: ParameterInfo) -> Rule:
        """The rule that reads this parameter."""
        for pattern, rule in self._names:
            if matches(info.name, pattern):
                return rule
        for base in type(info.module).__mro__:
            if base in self._types:
                return self._types[base]
        return self._fallback


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix under watch: its name, its shape and how to read it now."""

    name: str
    parameter: str
    shape: tuple[int, int]
    source: MatrixView
    aliases: tuple[str, ...]
    """Other names of the same parameter, where weights are tied."""
    get: Callable[[], Tensor | None] = field(repr=False, compare=False)

    @property
    def kind(self) -> str:
        """Family of the matrix, see `MatrixView.kind`."""
        return self.source.kind

    def read(self) -> Tensor:
        """The matrix as it is now, ``(m, n)``: a view of the live parameter.

        Two layouts have no 2-D view, since their columns have no single stride: transposed
        convolutions and kernels in ``channels_last``; torch copies those for the moment.
        """
        tensor = self.get()
        if tensor is None:
            raise ValueError(f"{self.name}: the parameter is gone; make a new SpectralMonitor")
        matrix = tensor if self.source.view is None else self.source.view(tensor)
        if matrix.shape != self.shape:
            raise ValueError(
                f"{self.name}: its shape was {self.shape} when the monitor was made and is "
                f"{tuple(matrix.shape)} now; make a new SpectralMonitor"
            )
        return matrix


def why_not_a_matrix(tensor: Tensor) -> str | None:
    """Why a parameter cannot be analysed at all, whatever module owns it; else ``None``."""
    if torch.nn.parameter.is_lazy(tensor):
        return "not initialised yet (lazy): make the monitor after the first forward pass"
    if tensor.layout != torch.strided:
        return f"layout {tensor.layout} has no strides"
    if tensor.is_quantized:
        return f"quantised ({tensor.dtype})"
    if tensor.device.type == "meta":
        return "on the meta device: it has no values"
    if hasattr(type(tensor), "__tensor_flatten__") or type(tensor).__name__ == "DTensor":
        return f"{type(tensor).__name__} holds its values in other tensors"
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f"dtype {tensor.dtype} is not float16, bfloat16, float32 or float64"
    if tensor.dim() < 2:
        return f"{tensor.dim()}-D: biases, scales and other vectors are not matrices"
    if tensor.numel() == 0:
        return "empty"
    return None


def find_matrices(
    parameters: Sequence[tuple[ParameterInfo, Callable[[], Tensor | None]]],
    registry: MatrixRegistry,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> tuple[list[Matrix], list[Skipped]]:
    """The matrices to watch and the parameters that are not, in the order given.

    ``include`` and ``exclude`` hold patterns (`python_api.globs`) that are held against the
    matrix's name, its parameter's name and, where weights are tied, the other names. A block
    such as ``lstm.weight_ih_l0[gate g]`` becomes a matrix of its own when an ``include``
    pattern spells out its bracket.

    Raises:
        ValueError: a pattern fits nothing.
    """
    owners = _group_tied(parameters)
    found: list[Matrix] = []
    skipped: list[Skipped] = []
    for info, get, aliases in owners:
        shape = () if torch.nn.parameter.is_lazy(info.tensor) else tuple(info.tensor.shape)
        reason = why_not_a_matrix(info.tensor)
        views = Skip(reason) if reason is not None else registry.rule_for(info)(info)
        if isinstance(views, Skip):
            is_layer = reason is not None and len(shape) != 1
            skipped.append(Skipped(info.name, shape, views.reason, is_layer))
            continue
        for view in views:
            matrix = _matrix(info, view, aliases, get)
            found.append(matrix)
            found.extend(_blocks_asked_for(matrix, include))
    _check_patterns(include, exclude, found, skipped)
    return _select(found, skipped, include, exclude)


def _group_tied(
    parameters: Sequence[tuple[ParameterInfo, Callable[[], Tensor | None]]],
) -> list[tuple[ParameterInfo, Callable[[], Tensor | None], tuple[str, ...]]]:
    first: dict[int, int] = {}
    groups: list[tuple[ParameterInfo, Callable[[], Tensor | None], list[str]]] = []
    for info, get in parameters:
        known = first.setdefault(id(info.tensor), len(groups))
        if known == len(groups):
            groups.append((info, get, []))
        else:
            groups[known][2].append(info.name)
    return [(info, get, tuple(names)) for info, get, names in groups]


def _matrix(
    info: ParameterInfo,
    source: MatrixView,
    aliases: tuple[str, ...],
    get: Callable[[], Tensor | None],
) -> Matrix:
    shaped = info.tensor.detach() if source.view is None else source.view(info.tensor.detach())
    if shaped.dim() != 2:
        raise ValueError(
            f"{info.name}{source.suffix}: the rule for {tuple(info.tensor.shape)} made "
            f"{tuple(shaped.shape)}; expected two dimensions"
        )
    shape = (shaped.shape[0], shaped.shape[1])
    return Matrix(info.name + source.suffix, info.name, shape, source, aliases, get)


def _blocks_asked_for(whole: Matrix, include: Sequence[str] | None) -> list[Matrix]:
    """Blocks that a pattern names with their bracket: ``*`` alone means whole matrices."""
    asked = [pattern for pattern in include or () if "[" in pattern]
    return [
        Matrix(
            f"{whole.name}[{block.label}]",
            whole.parameter,
            (block.stop - block.start, whole.shape[1]),
            MatrixView(whole.kind, _rows(whole.source.view, block)),
            whole.aliases,
            whole.get,
        )
        for block in whole.source.blocks
        if any(matches(f"{whole.name}[{block.label}]", pattern) for pattern in asked)
    ]


def _rows(view: Callable[[Tensor], Tensor] | None, block: Block) -> Callable[[Tensor], Tensor]:
    def rows(tensor: Tensor) -> Tensor:
        whole = tensor if view is None else view(tensor)
        return whole[block.start : block.stop]

    return rows


def _names(matrix: Matrix) -> tuple[str, ...]:
    return (matrix.name, matrix.parameter, *matrix.aliases)


def _check_patterns(
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
    found: Sequence[Matrix],
    skipped: Sequence[Skipped],
) -> None:
    known = dict.fromkeys(name for matrix in found for name in _names(matrix))
    known.update(dict.fromkeys(row.name for row in skipped))
    check_all_matched("include", include or (), known)
    check_all_matched("exclude", exclude or (), known)


def _select(
    found: Sequence[Matrix],
    skipped: list[Skipped],
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
) -> tuple[list[Matrix], list[Skipped]]:
    kept: list[Matrix] = []
    for matrix in found:
        names = _names(matrix)
        out = next((p for p in exclude or () if any(matches(n, p) for n in names)), None)
        if out is not None:
            skipped.append(Skipped(matrix.name, matrix.shape, f"excluded by {out!r}", True))
        elif include is not None and not any(matches(n, p) for n in names for p in include):
            skipped.append(Skipped(matrix.name, matrix.shape, "not in include", True))
        else:
            kept.append(matrix)
    return kept, skipped
