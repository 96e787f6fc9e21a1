"""Which of a parametrized weight's tensors stand for it, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from spectral_monitor.model.matrices import ParameterInfo
from spectral_monitor.model.parametrized import Parametrized
from torch import Tensor

__all__ = ["Factors", "Shown"]

Shown = Literal["effective", "raw"]

# Their other parameters are lengths, estimates and masks; a parametrization of somebody's own may
# have matrices in it, which are watched where the raw weight is.
_KNOWN = ("spectral_norm", "weight_norm", "prune")


class Factors:
    """The parametrized weights of a model, as their owners are met.

    Args:
        shown: what stands for a weight. One that cannot be computed is shown raw, with the reason.
    """

    def __init__(self, shown: Shown) -> None:
        self._shown_as = shown
        self._values: dict[str, Tensor] = {}
        self._made: dict[str, tuple[str, str]] = {}
        self._raw: set[str] = set()
        self._failed: dict[str, str] = {}

    def note(self, path: str, made: Parametrized) -> None:
        """A weight of the module at ``path``; to be called once for each."""
        weight = _under(path, made.leaf)
        value = self._computed(weight, made)
        if value is not None:
            self._values[weight] = value
        else:
            self._raw.add(_under(path, made.raw))
        if value is not None or made.how in _KNOWN:
            for part in made.parts:
                self._made[_under(path, part)] = (weight, made.how)

    def _computed(self, weight: str, made: Parametrized) -> Tensor | None:
        if self._shown_as == "raw":
            return None
        if made.effective is None:
            self._failed[weight] = "which names do not tell"
            return None
        try:
            return made.effective()
        # Code of anybody's, for what is there now; the weight is still there raw.
        except Exception as error:
            self._failed[weight] = f"which cannot be computed here: {type(error).__name__}: {error}"
            return None

    def weight(
        self, path: str, made: Parametrized, raw: Tensor, get_raw: Callable[[], Tensor | None]
    ) -> tuple[ParameterInfo, Callable[[], Tensor | None]]:
        """A noted weight as a parameter, and its getter."""
        name, raw_name = _under(path, made.leaf), _under(path, made.raw)
        value = self._values.get(name)
        info = ParameterInfo(name, made.leaf, raw, None, None, made_by=made.how)
        if value is None or made.effective is None:
            how = ", ".join(filter(None, (made.how, self._failed.get(name))))
            return replace(info, form="raw", made_by=how, made_of=(raw_name,)), get_raw
        parts = tuple(_under(path, part) for part in made.parts)
        get = made.effective
        return (
            replace(
                info, tensor=value, form="effective", made_of=parts, origin=raw, sample=get.sample
            ),
            get,
        )

    def is_shown(self, name: str) -> bool:
        """Whether this parameter is the raw one that stands for a weight."""
        return name in self._raw

    def marked(self, info: ParameterInfo) -> ParameterInfo:
        """A parameter with the weight that it is a factor of, if it is one."""
        weight, how = self._made.get(info.name, (None, ""))
        return info if weight is None else replace(info, factor_of=weight, made_by=how)


def _under(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
