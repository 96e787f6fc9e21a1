"""Recurrent layers: input weights feed the recurrent ones, and both write the output.

An output leaves by the rows of the content gate (g of an LSTM, n of a GRU). The two directions of a
layer are side by side in what the next one reads, and of a further recurrent layer each direction
is compared with its own half alone, as in the papers' code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from spectral_monitor.model.layer_tree import Scope
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.pairs.flow.steps import Record, Stream
from spectral_monitor.pairs.ports import Pair, Port, Rejected, connect, entry_port, exit_port

# ``weight_ih_l1_reverse``; of a cell ``weight_ih``.
_INPUTS = re.compile(r"weight_ih((?:_l(\d+))?(?:_reverse)?)")

Weights = Mapping[str, Sequence[Matrix]]
"""Role "ih", "hh" or "hr" -> its matrix."""


@dataclass(frozen=True, slots=True)
class Recurrent:
    """The weights of every layer, for each of its directions."""

    layers: tuple[tuple[Weights, ...], ...]

    @classmethod
    def of(cls, scope: Scope) -> Recurrent | None:
        """Those of an `nn.RNNBase` or an `nn.RNNCellBase`, told by their names, as a state dict
        has them too; None where there are none."""
        endings: dict[int, list[str]] = {}
        for name in scope.parameters:
            match = _INPUTS.fullmatch(name)
            if match is not None and f"weight_hh{match[1]}" in scope.parameters:
                endings.setdefault(int(match[2] or 0), []).append(match[1])
        layers = (sorted(endings[layer], key=len) for layer in sorted(endings))
        found_layers = tuple(tuple(_weights(scope, end) for end in ends) for ends in layers)
        return cls(found_layers) if found_layers else None

    def run(self, record: Record, before: Stream) -> Stream:
        """Layer after layer."""
        for directions in self.layers:
            count = len(directions)
            entries = [[entry_port(m) for m in weights.get("ih", ())] for weights in directions]
            if before.both_ways and count > 1:
                entries = [[_half(port, i) for port in into] for i, into in enumerate(entries)]
            exits = [
                _one_of(port, index, count)
                for index, weights in enumerate(directions)
                for port in _recurrence(record, weights)
            ]
            record.join(before, [port for into in entries for port in into], "consecutive layers")
            before = Stream(tuple(exits), both_ways=count > 1)
        return before


def _weights(scope: Scope, suffix: str) -> Weights:
    names = {role: scope.parameters.get(f"weight_{role}{suffix}") for role in ("ih", "hh", "hr")}
    return {role: scope.of([name]) for role, name in names.items() if name is not None}


def _recurrence(record: Record, weights: Weights) -> list[Port]:
    """Pair the weights of one layer and direction; return where its output leaves."""

    def feed(exits: list[Port], entries: list[Port], reason: str) -> None:
        answers: list[Pair | Rejected | None] = []
        answers += [connect(out, into, reason) for out in exits for into in entries]
        record.keep(answers)

    inputs, hidden, projected = (
        [exit_port(matrix) for matrix in weights.get(role, ())] for role in ("ih", "hh", "hr")
    )
    into_hidden = [entry_port(matrix) for matrix in weights.get("hh", ())]
    if not projected:
        feed(inputs, into_hidden, "input weights feed the recurrent ones")
        return inputs + hidden
    feed(inputs + hidden, [entry_port(m) for m in weights["hr"]], "gates feed the projection")
    feed(projected, into_hidden, "the projected state returns")
    return projected


def _one_of(port: Port, index: int, count: int) -> Port:
    """The port as one of several whose outputs are side by side."""
    size = len(port)
    return replace(port, first_channel=index * size, channels=count * size)


def _half(port: Port, index: int) -> Port:
    """The inputs from the same direction of the layer before."""
    size = len(port) // 2
    return port.narrowed(index * size, (index + 1) * size)
