"""The modes of torch and of Python under which a monitor computes, whatever those of its caller."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import torch


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


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No cyclic collection inside, as a ``with`` statement or a decorator.

    The plan of 18,674 matrices is some hundred thousand objects, none of which is garbage, and
    each pass of the collector on the way reads all that are there: nearly half of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
