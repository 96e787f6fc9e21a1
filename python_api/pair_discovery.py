"""Which layers feed which, read from the structure of the model alone.

Layers are taken in the order in which modules were registered, which is the order of the data
in `nn.Sequential` and by custom elsewhere; each is paired with the layer before it where the
sizes chain. Attention, recurrent layers and gated MLPs, which are not chains, have rules of
their own. No hook runs, so what a forward method does besides is not seen: give ``pairs`` where
the order differs. Residual connections are ignored, as in the papers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import nn

from python_api.attention_pairs import find_attention
from python_api.decomposed.embedding import DecomposedEmbedding
from python_api.heads import HeadCounts
from python_api.layer_tree import Scope
from python_api.matrices import Matrix
from python_api.pairs import Pair, Port, Rejected, connect, entry_port, exit_port

__all__ = ["discover_pairs"]

_SIDE_BRANCHES = frozenset({"downsample", "shortcut", "skip", "skip_connection", "residual"})
# Two layers that read the same input and are multiplied, by the names of well-known models.
_GATED = (("gate_proj", "up_proj"), ("w1", "w3"), ("wi_0", "wi_1"))
_TABLE_WORDS = ("pos", "embed", "wpe", "wte")


def discover_pairs(root: Scope, counts: HeadCounts) -> tuple[list[Pair], list[Rejected]]:
    """Pairs of the whole model, and neighbours that are none with the reason."""
    walk = _Walk(counts)
    walk.visit(root)
    return list(walk.pairs.values()), walk.rejected


class _Walk:
    def __init__(self, counts: HeadCounts) -> None:
        self.pairs: dict[tuple[str, str], Pair] = {}
        self.rejected: list[Rejected] = []
        self._counts = counts
        self._exits: list[Port] = []
        # A plain parameter that holds embeddings may have them as rows or as columns; the
        # second way is tried where the first does not chain.
        self._other_way: dict[Port, Port] = {}
        self._after_table = False
        self._hidden_before: str | None = None
        # Whether the exits are those of the two directions of a recurrent layer.
        self._from_both_ways = False

    def visit(self, scope: Scope) -> None:
        if scope.name in _SIDE_BRANCHES:
            for matrix in _all_matrices(scope):
                self.rejected.append(
                    Rejected(matrix.name, "", "side branch: residual connections are ignored")
                )
        elif isinstance(scope.module, nn.RNNBase):
            self._recurrent(scope, scope.module)
        elif isinstance(scope.module, nn.RNNCellBase):
            self._cell(scope)
        else:
            self._general(scope)

    def _general(self, scope: Scope) -> None:
        attention = find_attention(scope, self._counts)
        taken: set[str] = set() if attention is None else attention.parameters
        gated = _gated_groups(scope)
        done: set[str] = set()

        def parameters(names: Iterable[str]) -> None:
            for name in names:
                if name in done:
                    continue
                if attention is not None and name in taken:
                    done.update(taken)
                    self._step(attention.entries(), attention.exits())
                    self._keep(attention.pairs())
                    continue
                group = gated.get(name, [name])
                done.update(group)
                self._layer(scope, group)

        parameters(scope.parameters.values())
        for child in scope.children.values():
            if not child.children and any(n in taken or n in gated
                                          for n in child.parameters.values()):  # fmt: skip
                parameters(child.parameters.values())
                continue
            if isinstance(scope.module, nn.Transformer) and child.name == "decoder":
                self._break("the decoder reads its own tokens, not the encoder's output")
            self.visit(child)

    def _layer(self, scope: Scope, names: Sequence[str]) -> None:
        matrices = scope.of(names)
        if not matrices:
            if any(name in scope.hidden for name in names):
                self._hidden_before = names[0]
                self._break(None)
            return
        if _is_table(scope, names[0], matrices):
            columns = [_columns(matrix) for matrix in matrices]
            for matrix, port in zip(matrices, columns, strict=True):
                if matrix.kind == "parameter":
                    self._other_way[port] = exit_port(matrix)
            # Token and position embeddings are summed: both feed what comes next.
            self._exits = [*self._exits, *columns] if self._after_table else columns
            self._after_table = True
            self._hidden_before = None
            return
        self._step(
            [entry_port(matrix) for matrix in matrices], [exit_port(matrix) for matrix in matrices]
        )

    def _step(self, entries: Sequence[Port], exits: Sequence[Port]) -> None:
        if self._hidden_before is not None and entries:
            reason = f"{self._hidden_before} between them is not watched"
            self.rejected.append(Rejected(self._hidden_before, entries[0].label, reason))
        self._connect(self._exits, entries, "consecutive layers")
        self._exits = list(exits)
        self._after_table = False
        self._hidden_before = None
        self._from_both_ways = False

    def _connect(self, exits: Iterable[Port], entries: Sequence[Port], reason: str) -> None:
        for out in exits:
            answers = [connect(out, into, reason) for into in entries]
            other = self._other_way.get(out)
            if other is not None and not any(isinstance(answer, Pair) for answer in answers):
                turned = [connect(other, into, reason) for into in entries]
                if any(isinstance(answer, Pair) for answer in turned):
                    answers = turned
            self._keep(answers)

    def _keep(self, answers: Iterable[Pair | Rejected | None]) -> None:
        for answer in answers:
            if isinstance(answer, Pair):
                self.pairs.setdefault(answer.key, answer)
            elif answer is not None:
                self.rejected.append(answer)

    def _break(self, reason: str | None) -> None:
        if reason is not None and self._exits:
            self.rejected.append(Rejected(self._exits[0].label, "", reason))
        self._exits = []
        self._after_table = False

    def _recurrent(self, scope: Scope, module: nn.RNNBase) -> None:
        directions = ["", "_reverse"] if module.bidirectional else [""]
        for layer in range(module.num_layers):
            inputs: list[Port] = []
            exits: list[Port] = []
            for index, suffix in enumerate(directions):
                weights = {
                    role: scope.of([scope.parameters[f"weight_{role}_l{layer}{suffix}"]])
                    for role in ("ih", "hh", "hr")
                    if f"weight_{role}_l{layer}{suffix}" in scope.parameters
                }
                entries = [entry_port(matrix) for matrix in weights.get("ih", [])]
                if self._from_both_ways and module.bidirectional:
                    entries = [_half(port, index) for port in entries]
                inputs += entries
                exits += [
                    _one_of(port, index, len(directions)) for port in self._recurrence(weights)
                ]
            self._step(inputs, exits)
            self._from_both_ways = module.bidirectional

    def _cell(self, scope: Scope) -> None:
        weights = {
            role: scope.of([scope.parameters[f"weight_{role}"]])
            for role in ("ih", "hh")
            if f"weight_{role}" in scope.parameters
        }
        inputs = [entry_port(matrix) for matrix in weights.get("ih", [])]
        self._step(inputs, self._recurrence(weights))

    def _recurrence(self, weights: dict[str, list[Matrix]]) -> list[Port]:
        """Pair the weights of one layer and direction; return where its output leaves."""
        inputs, hidden, projected = (
            [exit_port(matrix) for matrix in weights.get(role, [])] for role in ("ih", "hh", "hr")
        )
        into_hidden = [entry_port(matrix) for matrix in weights.get("hh", [])]
        if not projected:
            self._connect(inputs, into_hidden, "input weights feed the recurrent ones")
            return inputs + hidden
        projection = [entry_port(matrix) for matrix in weights["hr"]]
        self._connect(inputs + hidden, projection, "gates feed the projection")
        self._connect(projected, into_hidden, "the projected state returns")
        return projected


def _one_of(port: Port, index: int, count: int) -> Port:
    """The port as one of several whose outputs are concatenated."""
    size = len(port)
    return replace(port, first_channel=index * size, channels=count * size)


def _half(port: Port, index: int) -> Port:
    """The inputs from the same direction of the layer before: the other half is left out, as in
    the papers' code."""
    size = len(port) // 2
    return port.narrowed(index * size, (index + 1) * size)


def _all_matrices(scope: Scope) -> Iterable[Matrix]:
    yield from scope.own()
    for child in scope.children.values():
        yield from _all_matrices(child)


def _columns(matrix: Matrix) -> Port:
    n = matrix.shape[1]
    return Port(matrix, matrix.name, "V", 0, n, channels=n)


def _is_table(scope: Scope, parameter: str, matrices: Sequence[Matrix]) -> bool:
    """Whether rows are looked up or added by position, so that the layer has no input."""
    if isinstance(scope.module, (nn.Embedding, nn.EmbeddingBag, DecomposedEmbedding)):
        return True
    if scope.module is not None and parameter.rpartition(".")[2] == "weight":
        return False
    words = ".".join(parameter.lower().split(".")[-2:])
    if "unembed" in words:
        return False
    return matrices[0].kind == "parameter" and any(word in words for word in _TABLE_WORDS)


def _gated_groups(scope: Scope) -> dict[str, list[str]]:
    """Parameter -> all parameters of its gated pair, for the pairs of this scope."""
    units = {unit.lower(): names for unit, names in scope.units()}
    groups: dict[str, list[str]] = {}
    for gate, up in _GATED:
        names = [*units.get(gate, []), *units.get(up, [])]
        matrices = scope.of(names)
        # Equal and not square: layers of a plain chain called w1, w2, w3 are not meant.
        if len(matrices) == 2 and matrices[0].shape == matrices[1].shape:
            m, n = matrices[0].shape
            if m != n:
                groups.update(dict.fromkeys(names, names))
    return groups
