"""What a model's configuration says, and how many heads its attentions have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from spectral_monitor.model.names import check_all_matched, matches
from torch import nn


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


# Parts of a model that have a section of the config of their own.
_SECTIONS = {
    "vision_config": ("vision_model", "vision_tower", "visual", "vision"),
    "audio_config": ("audio_model", "audio_tower", "audio_encoder"),
    "text_config": ("text_model", "language_model", "text"),
}
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
        config: of Hugging Face, an object or a dictionary, for what no module tells.

    Raises:
        ValueError: a count that is no positive whole number, or a pattern that fits nothing.
        TypeError: a config that has no fields.
    """

    def __init__(
        self,
        option: int | Mapping[str, int] | None,
        modules: Mapping[str, nn.Module],
        names: Iterable[str],
        config: object = None,
    ) -> None:
        counts = option.values() if isinstance(option, Mapping) else [option]
        for count in counts:
            # bool is an int, and heads=True is a mistake.
            if count is not None and (isinstance(count, bool) or count != int(count) or count < 1):
                raise ValueError(f"heads: expected positive whole numbers, got {count!r}")
        if isinstance(option, Mapping):
            check_all_matched("heads", list(option), names)
        if config is not None and not (isinstance(config, Mapping) or hasattr(config, "__dict__")):
            raise TypeError(
                "config: expected a Hugging Face config or the dictionary of its config.json, got "
                f"{type(config).__name__}"
            )
        self._option = option
        self._modules = modules
        # Thousands of experts have the same modules above them.
        self._counts: dict[tuple[str, ...], dict[str, int | None]] = {}
        self.config = config
        """As it was given."""

    def queries(self, name: str) -> int | None:
        """Query heads for the parameter (or module) ``name``; ``None`` where nothing tells."""
        if isinstance(self._option, int):
            return self._option
        for pattern, count in (self._option or {}).items():
            if matches(name, pattern):
                return count
        return self._nearest(name, _heads_in(name))

    def keys_and_values(self, name: str) -> int | None:
        """Key and value heads where a module says they are fewer (grouped queries)."""
        return self._nearest(name, _KV_HEADS)

    def _nearest(self, name: str, attributes: tuple[str, ...]) -> int | None:
        count = self._above(name, attributes)
        return _first_count(self._sections(name), attributes) if count is None else count

    def _above(self, path: str, attributes: tuple[str, ...]) -> int | None:
        """The count that the module at ``path`` has, or the nearest module above it."""
        by_path = self._counts.setdefault(attributes, {})
        if path not in by_path:
            module = self._modules.get(path)
            places = [] if module is None else [vars(module), vars(module).get("config")]
            count = _first_count(places, attributes)
            if count is None and path:
                count = self._above(path.rpartition(".")[0], attributes)
            by_path[path] = count
        return by_path[path]

    def _sections(self, name: str) -> list[Any]:
        """Parts of the config that speak of this parameter, the nearest first."""
        if self.config is None:
            return []
        parts = name.split(".")
        named = [key for key, words in _SECTIONS.items() if any(word in parts for word in words)]
        # Where nothing is said the language model is meant, if there is one.
        keys = [*named, *([] if named else ["text_config"])]
        sections = [section for key in keys if (section := setting(self.config, key)) is not None]
        return [*sections, self.config]


def _heads_in(name: str) -> tuple[str, ...]:
    """The fields that tell; encoder and decoder of one config may have their own."""
    parts = name.split(".")
    own = [f"{half}_attention_heads" for half in ("encoder", "decoder") if half in parts]
    return (*own, *_HEADS, "encoder_attention_heads")


def _first_count(places: Iterable[Any], attributes: tuple[str, ...]) -> int | None:
    for place in places:
        # Most modules have no config.
        if place is None:
            continue
        for attribute in attributes:
            value = setting(place, attribute)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None
