"""The numbers that a training step gives a monitor to keep with its frame."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

_RESERVED = frozenset({"every", "overhead", "not_finite", "reasons"})


def as_floats(scalars: Mapping[str, float | Tensor], kept: Collection[str] = ()) -> dict[str, Any]:
    """The scalars as floats, but for tensors that are kept.

    Args:
        scalars: by name, numbers or tensors of one element.
        kept: names of those that stay as they are, since reading them would wait for a device.

    Raises:
        ValueError: more than one number, or a name of the monitor's own.
    """
    values: dict[str, Any] = {}
    for name, value in scalars.items():
        if name in _RESERVED:
            raise ValueError(f"scalar {name!r}: the monitor reports its own {name}")
        if name in kept:
            values[name] = value
            continue
        try:
            values[name] = float(value.detach() if isinstance(value, Tensor) else value)
        except (TypeError, ValueError, RuntimeError) as error:
            what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ValueError(f"scalar {name!r}: expected one number, got {what}") from error
    return values
