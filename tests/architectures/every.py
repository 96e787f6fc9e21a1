"""All architectures: the files that put their builders on the list, in the order of the table."""

from __future__ import annotations

from architectures import decoders, encoders, experts, own, state_space, vision, wrapped
from architectures.catalogue import CATALOGUE, Architecture

__all__ = ["ARCHITECTURES"]

_FILES = (decoders, experts, state_space, encoders, wrapped, vision, own)

ARCHITECTURES: tuple[Architecture, ...] = tuple(
    one for file in _FILES for one in CATALOGUE.values() if one.build.__module__ == file.__name__
)
