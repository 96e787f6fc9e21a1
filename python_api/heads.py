"""How many heads an attention layer has, from the caller or from the modules themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from python_api.globs import check_all_matched, matches

__all__ = ["HeadCounts"]

_HEADS = ("num_heads", "n_heads", "num_attention_heads", "n_head", "nhead", "heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head")


class HeadCounts:
    """Looks up the number of heads for a parameter's name.

    Args:
        option: one number for every attention layer, patterns of names with their numbers, or
            ``None`` to read the attributes of the module and those above it (``num_heads``,
            ``n_head``, ``config.num_attention_heads`` ...).
        modules: qualified name -> module.
        names: parameter names, to refuse patterns that fit none.
    """

    def __init__(
        self,
        option: int | Mapping[str, int] | None,
        modules: Mapping[str, nn.Module],
        names: Iterable[str],
    ) -> None:
        counts = option.values() if isinstance(option, Mapping) else [option]
        for count in counts:
            # bool is an int, and heads=True is a mistake.
            if count is not None and (isinstance(count, bool) or count != int(count) or count < 1):
                raise ValueError(f"heads: expected positive whole numbers, got {count!r}")
        if isinstance(option, Mapping):
            check_all_matched("heads", list(option), names)
        self._option = option
        self._modules = modules

    def queries(self, name: str) -> int | None:
        """Query heads for the parameter (or module) ``name``; ``None`` where nothing tells."""
        if isinstance(self._option, int):
            return self._option
        for pattern, count in (self._option or {}).items():
            if matches(name, pattern):
                return count
        return self._nearest(name, _HEADS)

    def keys_and_values(self, name: str) -> int | None:
        """Key and value heads where a module says they are fewer (grouped queries)."""
        return self._nearest(name, _KV_HEADS)

    def _nearest(self, name: str, attributes: tuple[str, ...]) -> int | None:
        path = name
        while True:
            module = self._modules.get(path)
            found = _first_count(module, attributes)
            if found is not None or not path:
                return found
            path = path.rpartition(".")[0]


def _first_count(module: nn.Module | None, attributes: tuple[str, ...]) -> int | None:
    if module is None:
        return None
    places: list[Any] = [vars(module), vars(module).get("config")]
    for place in places:
        for attribute in attributes:
            value = (
                place.get(attribute)
                if isinstance(place, Mapping)
                else getattr(place, attribute, None)
            )
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None
