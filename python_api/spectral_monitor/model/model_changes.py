"""Whether the model still is the one that a monitor was planned for.

What is watched is fixed when the monitor is made: frames and run folders keep their columns. What
the model has beside that since then is told, not lost: tied weights that are two now, parameters
that had no values and have some, new ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from spectral_monitor.model.getters import without_wrappers
from spectral_monitor.model.matrix import Kept, Matrix
from spectral_monitor.model.not_matrices import why_no_matrix
from spectral_monitor.model.registry import Parameter, Skipped, same_memory, why_not_a_matrix
from torch import Tensor, nn

from spectral_kernels.entry.results import Decomposed

Get = Callable[[], Kept | None]

_REMEDY = "make a new SpectralMonitor to watch it"


class Unwatched(NamedTuple):
    """A parameter that came after the monitor was made."""

    name: str
    shape: tuple[int, ...]
    reason: str


class ModelChanges:
    """Finds what a plan leaves out by now.

    A check walks over the modules and compares who they and their parameters are with the time
    before: a third of a microsecond for each. Names are made where something differs.

    Args:
        model: the module or mapping of the monitor.
        parameters: all of it, as planned.
        matrices, skipped: what became of them.
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, Tensor],
        parameters: Sequence[Parameter],
        matrices: Sequence[Matrix],
        skipped: Sequence[Skipped],
    ) -> None:
        self._model = model
        getters: dict[str, Get] = {info.name: get for info, get in parameters}
        self._names = set(getters) | {without_wrappers(name) for name, _ in _named(model)}
        # Computed weights are new tensors each time they are got.
        self._watched = {m.parameter: m.get for m in matrices if not m.is_computed}
        self._ties = [
            (matrix.parameter, matrix.get, alias, getters[alias])
            for matrix in {m.parameter: m for m in matrices if m.form != "effective"}.values()
            for alias in matrix.aliases
        ]
        # Layers that had no values to analyse; excluded ones have some.
        unread = {info.name for info, _ in parameters if why_not_a_matrix(info.tensor)}
        self._waiting = {
            row.name: getters[row.name]
            for row in skipped
            if row.is_layer and row.name in unread and row.name in getters
        }
        self._seen = _who(model)
        self._unwatched: dict[str, Unwatched] = {}
        self._announced: set[str] = set()

    def warn_of_news(self, *, stacklevel: int) -> None:
        """Warn of the rows of `unwatched` that no earlier call warned of."""
        new = [row for row in self.unwatched() if row.name not in self._announced]
        if new:
            self._announced.update(row.name for row in new)
            others = f" and {len(new) - 1} more" if len(new) > 1 else ""
            warnings.warn(
                f"not watched: {new[0].name}{others}: {new[0].reason} (see monitor.explain())",
                stacklevel=stacklevel + 1,
            )

    def unwatched(self) -> list[Unwatched]:
        """All parameters so far that came after the monitor was made."""
        for row in (*self._untied(), *self._readable(), *self._added()):
            self._unwatched.setdefault(row.name, row)
        return list(self._unwatched.values())

    def _untied(self) -> Iterator[Unwatched]:
        for parameter, get, alias, get_alias in self._ties:
            first, second = (x.U if isinstance(x, Decomposed) else x for x in (get(), get_alias()))
            if first is None or second is None or first is second:
                continue
            # Of what cannot be read it cannot be told.
            unread = why_not_a_matrix(first) or why_not_a_matrix(second)
            if not unread and not same_memory(first, second):
                reason = f"no longer tied with {parameter}; {_REMEDY}"
                yield Unwatched(alias, tuple(second.shape), reason)

    def _readable(self) -> Iterator[Unwatched]:
        for name, get in self._waiting.items():
            tensor = get()
            if isinstance(tensor, Tensor) and why_not_a_matrix(tensor) is None:
                reason = f"had no values when the monitor was made, and has some; {_REMEDY}"
                yield Unwatched(name, tuple(tensor.shape), reason)

    def _added(self) -> Iterator[Unwatched]:
        now = _who(self._model)
        if now == self._seen:
            return
        self._seen = now
        watched = {id(get()) for get in self._watched.values()}
        for name, tensor in _named(self._model):
            # A wrapper of any kind gives what is watched another name.
            if id(tensor) in watched or without_wrappers(name) in self._names:
                continue
            if why_not_a_matrix(tensor) is None and not why_no_matrix(name, may_be_buffer=False):
                reason = f"added since the monitor was made; {_REMEDY}"
                yield Unwatched(name, tuple(tensor.shape), reason)


def _named(model: nn.Module | Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(model, nn.Module):
        yield from model.named_parameters(remove_duplicate=False)
    else:
        yield from model.items()


def _who(model: nn.Module | Mapping[str, Tensor]) -> list[int]:
    """Who the modules and parameters are, in order."""
    if not isinstance(model, nn.Module):
        return [*map(id, model.values())]
    identities: list[int] = []
    seen: set[nn.Module] = set()
    waiting: list[nn.Module | None] = [model]
    while waiting:
        module = waiting.pop()
        if module is None or module in seen:
            continue
        seen.add(module)
        identities.append(id(module))
        identities.extend(map(id, module._parameters.values()))
        waiting.extend(module._modules.values())
    return identities
