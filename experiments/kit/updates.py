"""Optimizer steps that the host only starts: as one CUDA graph each on a GPU, eagerly on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from spectral_monitor.device.streams import CudaStreams, HostStreams, Streams
from torch import Tensor

from experiments.kit.batches import Batches

# Steps taken launch by launch before one is recorded: they make the optimizer's state, compile
# kernels, and have libraries take their workspaces.
EAGER_STEPS = 3


class Updates:
    """Forward, loss, backward and optimizer step, over and over.

    One update, `one`, reads its batch and its learning rate from tables on the device, at a
    row that is counted there, so it is the same work at every step and asks the device for
    nothing. On a GPU it is recorded once and then replayed; on a CPU the very same method runs.

    Args:
        loss: indices (batch,) int64 -> the mean loss of these examples, a differentiable scalar.
            Fixed shapes, no reads of numbers.
        optimizer: of `torch.optim`, in a form that takes its learning rate as a tensor
            (``fused=True``), with its state already loaded if there is one. Its learning rate is
            replaced.
        batches: the examples of each step.
        rate: the learning rate of each step (from 0).
        device: of the model.
        streams: how work is recorded; by default graphs for CUDA, and nothing elsewhere.
    """

    def __init__(
        self,
        loss: Callable[[Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        batches: Batches,
        rate: Callable[[int], float],
        device: torch.device,
        streams: Streams | None = None,
    ) -> None:
        self._loss, self._optimizer, self._batches, self._rate_of = loss, optimizer, batches, rate
        rows = batches.steps_per_table
        self._table = torch.zeros(rows, batches.width, dtype=torch.int64, device=device)
        self._rates = torch.zeros(rows, device=device)
        self._row = torch.zeros(1, dtype=torch.int64, device=device)
        self._rate = torch.zeros((), device=device)
        for group in optimizer.param_groups:
            group["lr"] = self._rate
        self._set_capturable(False)
        self._loaded: int | None = None
        self._streams = streams or _streams_of(device)
        self._records = streams is not None or device.type == "cuda"
        self._eager_left = EAGER_STEPS
        self._replay: Callable[[], None] | None = None

    def run(self, first: int, last: int) -> None:
        """Take the steps ``first`` to ``last`` - 1, each after the one before."""
        rows = self._batches.steps_per_table
        while first < last:
            self._load(first)
            end = min(last, first - first % rows + rows)
            for _ in range(first, end):
                self._next()
            first = end

    def one(self) -> None:
        """One update, at the row that is due; no number of it is read on the host."""
        self._rate.copy_(self._rates.index_select(0, self._row).squeeze(0))
        indices = self._table.index_select(0, self._row).squeeze(0)
        self._optimizer.zero_grad(set_to_none=True)
        self._loss(indices).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._row.add_(1)

    def _next(self) -> None:
        if not self._records:
            self.one()
        elif self._replay is not None:
            self._replay()
        elif self._eager_left:
            # Aside, for a capture may not meet what the stream of training still holds.
            self._eager_left -= 1
            self._aside()
        else:
            self._set_capturable(True)
            self._replay = self._streams.recorded(self.one)
            self._replay()

    def _set_capturable(self, capturable: bool) -> None:
        """Adam and its kin refuse to be captured without this, and with it warn of eager steps.

        It changes nothing in a fused step.
        """
        for group in self._optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = capturable

    def _aside(self) -> None:
        before = self._streams.mark()
        with self._streams.aside():
            self._streams.follow(before)
            self.one()
            after = self._streams.mark()
        self._streams.follow(after)

    def _load(self, step: int) -> None:
        """Have the tables hold ``step``, and the counter stand there."""
        rows = self._batches.steps_per_table
        number = step // rows
        if number == self._loaded:
            return
        self._table.copy_(self._batches.table(number))
        rates = [self._rate_of(number * rows + row) for row in range(rows)]
        self._rates.copy_(torch.tensor(rates))
        self._row.fill_(step % rows)
        self._loaded = number


def _streams_of(device: torch.device) -> Any:
    return CudaStreams(device) if device.type == "cuda" else HostStreams()
