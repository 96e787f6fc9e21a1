"""What a forward pass showed: uses of weights, and which of them met in a product.

A *label* is one number for a use of a weight and one of its elements. An activation carries, at
every element, the label of the weight that wrote it: the number of the weight's element that made
this output from the first of its inputs. Of sums and products of activations `joined` says who
wrote them, of reductions `reduced` what they leave of the labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from spectral_monitor.pairs.tracing.elements import Elements
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Met:
    """Elements of two weights that met in a product, one by one."""

    kind: str
    """"feeds": outputs of the first are inputs of the second; "values": the same, through the
    probabilities of attention; "meet": outputs of both were multiplied (queries and keys)."""
    first: Tensor
    second: Tensor
    head: int | None = None
    """Outputs of one head of the values."""
    beside: Tensor | None = None
    """Of the first weight the elements that are summed: matrices of a stack write together."""
    others: Tensor | None = None
    """Of the second weight elements of all its outputs: matrices of a stack read together."""


@dataclass(frozen=True, slots=True)
class _Use:
    past: int
    """Bit i: use i had a part in what this one read."""
    number: int = 0
    """Of one element of the weight."""
    head: int | None = None
    pixels: int = 0
    """Of a convolution's result; 0 of others."""
    direction: int | None = None
    """Of a bidirectional recurrent layer."""
    inputs: tuple[tuple[Tensor, Tensor], ...] = ()
    """Of each batch its outputs' elements, and the elements of all inputs of the first output."""
    sources: set[int] = field(default_factory=set)
    """The uses that wrote what this one read."""


@dataclass(slots=True)
class Ledger:
    """Uses of weights in the order of the pass, and what met."""

    elements: Elements
    keeps_stream: bool = False
    """Whether what residual additions brought besides the nearest writers feeds too."""
    met: list[Met] = field(default_factory=list)
    used: list[Tensor] = field(default_factory=list)
    touched: set[int] = field(default_factory=set)
    """An element of every weight that any operation was given."""
    attention: set[int] = field(default_factory=set)
    """Which of what met was scores: a softmax followed."""
    ended: Counter[str] = field(default_factory=Counter)
    """Operations that no rule knows, and how often labels ended there."""
    mixed: dict[tuple[int, str, int], None] = field(default_factory=dict)
    """Elements of a weight, or 0, and of one that read what an operation had made of its outputs:
    which of them feeds which input is not known."""
    _uses: list[_Use] = field(default_factory=list)
    _places: dict[tuple[object, ...], int] = field(default_factory=dict)

    def use(
        self,
        past: int,
        numbers: Tensor | None = None,
        *,
        head: int | None = None,
        pixels: int = 0,
        direction: int | None = None,
        inputs: tuple[tuple[Tensor, Tensor], ...] = (),
    ) -> int:
        """A weight takes part; ``numbers`` are some of its elements."""
        number = 0 if numbers is None or not numbers.numel() else int(numbers.max())
        self._uses.append(_Use(past, number, head, pixels, direction, inputs))
        if numbers is not None:
            self.used.append(numbers.flatten())
        return len(self._uses) - 1

    def past(self, use: int) -> int:
        """The uses that had a part in what this one read."""
        return self._uses[use].past

    def narrows(self, use: int, later: int, pixels: int) -> bool:
        """Whether every way from one use to a later one is through an image of fewer pixels."""
        wide = self._leads(later, use, lambda u: 0 < self._uses[u].pixels < pixels)
        return not wide and self._leads(later, use, lambda u: False)

    def _leads(self, later: int, use: int, is_closed: Callable[[int], bool]) -> bool:
        """Whether a use read another, over uses that are not closed."""
        seen, left = {later}, [later]
        while left:
            for source in self._uses[left.pop()].sources:
                if source == use:
                    return True
                if source > use and source not in seen and not is_closed(source):
                    seen.add(source)
                    left.append(source)
        return False

    def label(self, use: int, numbers: Tensor) -> Tensor:
        """Labels of outputs; 0 where there is none."""
        return torch.where(numbers > 0, numbers + use * self.elements.count, 0)

    def uses(self, labels: Tensor) -> list[int]:
        """The uses among these labels."""
        if not labels.numel():
            return []
        least, most = (int(x) for x in labels.aminmax())
        if most == 0:
            return []
        if least == 0:
            # Without picking out those that are none, which takes longer than all the rest.
            least = int(torch.where(labels > 0, labels, most).min())
        count = self.elements.count
        low, high = least // count, most // count
        if low == high:
            return [low]
        labels = labels[labels > 0]
        several: list[int] = torch.unique(torch.div(labels, count, rounding_mode="floor")).tolist()
        return several

    def of_use(self, labels: Tensor, use: int) -> Tensor:
        """Which labels are of this use."""
        count = self.elements.count
        return (labels > use * count) & (labels < (use + 1) * count)

    def by_matrix(self, labels: Tensor, use: int) -> list[Tensor]:
        """Labels of a use of a stack of matrices, apart by the matrix that wrote them."""
        outputs = {written.numpy().tobytes(): written for written, _ in self._uses[use].inputs}
        if len(outputs) < 2:
            return [labels]
        numbers = labels - use * self.elements.count
        parts = [torch.where(torch.isin(numbers, own), labels, 0) for own in outputs.values()]
        return [own for own in parts if bool(own.any())]

    def through(self, labels: Tensor, head: int) -> Tensor:
        """The same labels after the probabilities of attention."""
        moved = torch.zeros_like(labels)
        for use in self.uses(labels):
            inputs = self._uses[use].inputs
            passed = self.use(self.past(use) | 1 << use, head=head, inputs=inputs)
            self._uses[passed] = replace(self._uses[passed], number=self._uses[use].number)
            self._uses[passed].sources.add(use)
            shifted = labels + (passed - use) * self.elements.count
            moved = torch.where(self.of_use(labels, use), shifted, moved)
        return moved

    def feeds(
        self,
        labels: Tensor,
        reading: Tensor,
        reader: int,
        others: Tensor | None = None,
        *,
        direction: int | None = None,
    ) -> None:
        """Outputs with these labels (K,) are the inputs (K,) of a weight's elements.

        ``direction`` is that of a bidirectional layer, which reads its own of the layer before.
        """
        for use in self.uses(labels):
            writer = self._uses[use]
            if direction is not None and writer.direction not in (None, direction):
                continue
            self._uses[reader].sources.add(use)
            own = self.of_use(labels, use) & (reading > 0)
            writing = labels[own] - use * self.elements.count
            # One output for all inputs, as a router's weight for every channel, is a scale.
            if len(writing) == 0 or (len(writing) > 1 and bool((writing == writing[0]).all())):
                continue
            met = Met(
                "feeds" if writer.head is None else "values",
                writing,
                reading[own],
                writer.head,
                next((i for o, i in writer.inputs if bool((o == writing[0]).any())), None),
                others,
            )
            self._keep(met)

    def meet(self, labels: Tensor, others: Tensor) -> set[int]:
        """Outputs (K,) of two weights are multiplied one by one and summed.

        Returns which of `met` these are.
        """
        count, places = self.elements.count, set()
        for use in self.uses(labels):
            mine = self.of_use(labels, use)
            for other in self.uses(others):
                own = mine & self.of_use(others, other)
                first, second = labels[own] - use * count, others[own] - other * count
                # One output for all of the other, as a step size for a state, is a scale.
                if all(len(x) > 1 and bool((x != x[0]).any()) for x in (first, second)):
                    places.add(self._keep(Met("meet", first, second)))
        return places

    def reads_mixed(self, mixed: Iterable[tuple[int | None, str]], reader: int) -> None:
        """A weight reads what operations made of the outputs of others."""
        number = self._uses[reader].number
        for use, name in mixed:
            self.mixed[0 if use is None else self._uses[use].number, name, number] = None

    def not_among(self, uses: Iterable[int], labels: Sequence[Tensor]) -> set[int]:
        """Those of the uses that wrote none of the labels, and nothing that their writers read."""
        kept = {use for layer in labels for use in self.uses(layer)}
        past = 0
        for use in kept:
            past |= self.past(use)
        return {use for use in uses if use not in kept and not past >> use & 1}

    def multiplied(self, inner: Tensor, outer: Tensor) -> None:
        """Outputs of one weight are the inputs of another, in a product of the two (LoRA)."""
        self._keep(Met("feeds", inner, outer))

    def _keep(self, met: Met) -> int:
        first, second = met.first.numpy().tobytes(), met.second.numpy().tobytes()
        name = (met.kind, first, second)
        if name not in self._places:
            self._places[name] = len(self.met)
            self.met.append(met)
        return self._places[name]


@dataclass(frozen=True, slots=True)
class Written:
    """Labels of one operand, broadcast to the shape of the result."""

    layers: list[Tensor]
    positions: int = 0
    """Pixels of the operand where it is an image, else 0."""


def joined(ledger: Ledger, a: Written, b: Written, *, is_sum: bool) -> Written:
    """The writers of both operands.

    Of a sum the nearest alone, unless the ledger keeps the stream: where the branch of a residual
    block, x + f(x), has read what wrote x, the branch's last weight is the writer. A skip past a
    branch of fewer pixels, as in a UNet, counts: what it brings is not in the branch. Of a product
    of two activations (gates, squeeze-excite) all are writers. The same use of a weight in both
    terms of a sum, as in x cos + rotate(x) sin, counts at the places where the first has it.
    """
    first, second = a.layers, b.layers
    positions = max(a.positions, b.positions)
    if is_sum and not ledger.keeps_stream and first and second:
        mine, others = _uses(ledger, first), _uses(ledger, second)
        first = _without_uses(ledger, first, _passed(ledger, mine, others - mine, positions))
        second = _without_uses(ledger, second, _passed(ledger, others, mine - others, positions))
    return Written(_united(ledger, first, second, is_sum=is_sum), positions)


def _uses(ledger: Ledger, layers: Sequence[Tensor]) -> set[int]:
    return {use for layer in layers for use in ledger.uses(layer)}


def _passed(ledger: Ledger, writers: set[int], others: set[int], positions: int) -> set[int]:
    """The writers that one of the others has read on the way, and not past a narrower image."""
    passed = set()
    for use in writers:
        after = [other for other in others if ledger.past(other) >> use & 1]
        if after and not any(ledger.narrows(use, other, positions) for other in after):
            passed.add(use)
    return passed


def _without_uses(ledger: Ledger, layers: Sequence[Tensor], uses: set[int]) -> list[Tensor]:
    """The layers without the labels of these uses."""
    if not uses:
        return list(layers)
    kept = []
    for layer in layers:
        out = torch.zeros_like(layer, dtype=torch.bool)
        for use in uses:
            out |= ledger.of_use(layer, use)
        left = torch.where(out, 0, layer)
        if bool(left.any()):
            kept.append(left)
    return kept


def _united(
    ledger: Ledger, first: Sequence[Tensor], second: Sequence[Tensor], *, is_sum: bool
) -> list[Tensor]:
    """All layers; a sum has one label of a use at each place, the first operand's."""
    layers = list(first)
    count = ledger.elements.count
    for layer in second:
        new = layer
        for other in first:
            same = new == other
            if is_sum:
                uses = (torch.div(x, count, rounding_mode="floor") for x in (new, other))
                same = (next(uses) == next(uses)) & (other > 0)
            new = torch.where(same, 0, new)
        if bool(new.any()):
            layers.append(new)
    return _packed(layers)


def _packed(layers: list[Tensor]) -> list[Tensor]:
    """Layers that are nowhere at the same place in one: what experts wrote for their tokens."""
    packed: list[Tensor] = []
    for layer in layers:
        for index, other in enumerate(packed):
            if not bool(((other > 0) & (layer > 0)).any()):
                packed[index] = other + layer
                break
        else:
            packed.append(layer)
    return packed


def reduced(ledger: Ledger, layer: Tensor, dims: Sequence[int], *, keepdim: bool) -> list[Tensor]:
    """What a sum over these dimensions leaves: each writer whose label is one along them.

    Matrices of a stack, such as experts, are a writer each.
    """
    dims = [dim % layer.dim() for dim in dims] or list(range(layer.dim()))
    if not layer.dim() or not layer.numel():
        return []
    kept, left = _common_label(layer, dims, keepdim)
    kept_layers = [kept] if bool(kept.any()) else []
    if left:
        for use in ledger.uses(layer):
            for part in ledger.by_matrix(torch.where(ledger.of_use(layer, use), layer, 0), use):
                own, _ = _common_label(part, dims, keepdim)
                own = torch.where(kept > 0, 0, own)
                if bool(own.any()):
                    kept_layers.append(own)
    return _packed(kept_layers)


def _common_label(layer: Tensor, dims: list[int], keepdim: bool) -> tuple[Tensor, bool]:
    """The label where there is but one along the dimensions, and whether others are left."""
    high = layer.amax(dims, keepdim=keepdim)
    none = torch.iinfo(torch.int64).max
    low = torch.where(layer > 0, layer, none).amin(dims, keepdim=keepdim)
    one = (low == high) & (high > 0)
    return torch.where(one, high, 0), bool((~one & (high > 0)).any())


def varies(layer: Tensor, dim: int) -> bool:
    """Whether some label is not the same along a dimension."""
    if layer.shape[dim] < 2:
        return False
    first = layer.narrow(dim, 0, 1)
    return bool((layer != first).any())
