"""Loss and accuracy of a classifier over a whole set."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def scores(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: Loss = nn.functional.cross_entropy,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Mean loss and accuracy of ``model`` on ``inputs``, two float64 scalars on their device.

    The model is in evaluation mode meanwhile. Nothing waits for a GPU.

    Args:
        model: inputs (rows, ...) -> logits (rows, ..., classes).
        inputs: (count, ...).
        targets: int64, (count, ...): the classes, in the logits' shape without its last side.
        loss: (logits (n, classes), targets (n,)) -> their mean loss.
        chunk: rows that go through the model at a time.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=inputs.device)
    right = torch.zeros((), dtype=torch.int64, device=inputs.device)
    for first in range(0, len(inputs), chunk):
        logits, wanted = model(inputs[first : first + chunk]), targets[first : first + chunk]
        logits, wanted = logits.reshape(-1, logits.shape[-1]), wanted.reshape(-1)
        total += loss(logits, wanted).double() * len(wanted)
        right += (logits.argmax(dim=-1) == wanted).sum()
    model.train(was_training)
    return total / targets.numel(), right.double() / targets.numel()
