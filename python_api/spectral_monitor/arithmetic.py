"""The modes of torch under which a monitor computes, whatever those of its caller are."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

__all__ = ["plain_arithmetic"]


def plain_arithmetic() -> contextlib.AbstractContextManager[Any]:
    """No gradients and no autocast: a step inside ``torch.autocast`` must not round to bf16.

    No inference mode either: what a step leaves for the next one would be read-only outside.
    """
    autocast = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    if not autocast and not torch.is_inference_mode_enabled():
        return torch.no_grad()
    stack = contextlib.ExitStack()
    if torch.is_inference_mode_enabled():
        stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.no_grad())
    for device in autocast:
        stack.enter_context(torch.autocast(device, enabled=False))
    return stack
