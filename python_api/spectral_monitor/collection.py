"""Python's collector of cyclic garbage, held off while much is made that stays."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["uncollected"]


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
