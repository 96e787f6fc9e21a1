"""What a model's configuration says, be it an object with attributes or a dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["config_of", "setting"]


def setting(config: Any, name: str) -> Any:
    """The value of one setting; ``None`` where there is none, or none for all layers."""
    # The attributes of a module are a dictionary, which needs no look at its abstract classes.
    if type(config) is dict or isinstance(config, Mapping):
        return config.get(name)
    try:
        return getattr(config, name, None)
    except RuntimeError:
        # Configs of layers that differ refuse to tell what is not one number.
        return None


def config_of(module: nn.Module | None) -> Any:
    """The configuration that a module carries, as those of Hugging Face do; ``None`` of others."""
    return None if module is None else vars(module).get("config")
