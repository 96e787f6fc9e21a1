"""All architectures: the files that put their builders on the list, in the order of the table."""

from __future__ import annotations

from . import decoders, encoders, experts, own, parallel, state_space, vision, wrapped
from .catalogue import CATALOGUE, Architecture

__all__ = ["ARCHITECTURES"]

_FILES = (decoders, parallel, experts, state_space, encoders, wrapped, vision, own)

ARCHITECTURES: tuple[Architecture, ...] = tuple(
    one for file in _FILES for one in CATALOGUE.values() if one.build.__module__ == file.__name__
)
