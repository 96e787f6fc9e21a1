"""What a monitor is copied, pickled and resumed from: its model, options and state.

What a monitor prepares belongs to one process and one model: addresses of matrices, getters,
streams of a device. A copy is made anew when it is first used, which lets a model hold its monitor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spectral_monitor.model.matrix import Matrix
from torch import Tensor, nn

STATE_VERSION = 5


class CopiedByState:
    """A class whose instances are an ``__init__`` and a ``state_dict``, see `SpectralMonitor`."""

    _restored = False
    """Whether this one gets a state, so that a first measurement would be for nothing."""
    _model: nn.Module | Mapping[str, Tensor]
    _options: dict[str, Any]

    def _beside_state(self) -> dict[str, Any]:
        """Attributes that a state does not have.

        Raises:
            TypeError: it cannot be copied.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What an instance with the same options goes on from."""
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        if "_saved" in self.__dict__:
            return dict(self.__dict__["_saved"])
        beside = self._beside_state()
        return {
            "model": self._model,
            "options": {**self._options, "recorder": None},
            "state": self.state_dict(),
            "beside": beside,
        }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__dict__["_saved"] = saved

    if not TYPE_CHECKING:
        # To a type checker it would make every misspelt name an attribute.
        def __getattr__(self, name: str) -> Any:
            saved = None if name.startswith("__") else self.__dict__.pop("_saved", None)
            if saved is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            try:
                self._restored = True
                self.__init__(saved["model"], **saved["options"])
                self.load_state_dict(saved["state"])
                self.__dict__.update(saved["beside"])
            except BaseException:
                self.__dict__.clear()
                self.__dict__["_saved"] = saved
                raise
            return getattr(self, name)


def matrices_state(matrices: Sequence[Matrix]) -> dict[str, Any]:
    """What `check_state` compares of the matrices."""
    return {
        "shapes": {matrix.name: list(matrix.shape) for matrix in matrices},
        "inner": {matrix.name: matrix.inner for matrix in matrices if matrix.is_decomposed},
    }


def check_state(state: Mapping[str, Any], method: str, matrices: Sequence[Matrix]) -> None:
    """Raise `ValueError`, naming what differs, for a state of another method or other matrices."""
    if state.get("version") != STATE_VERSION:
        raise ValueError(f"state: version {state.get('version')!r}, expected {STATE_VERSION}")
    if state["method"] != method:
        raise ValueError(f"state: made by method {state['method']!r}, this monitor has {method!r}")
    inner = state.get("inner", {})
    given = {name: _described(shape, inner.get(name)) for name, shape in state["shapes"].items()}
    here = {matrix.name: _described(matrix.shape, matrix.inner) for matrix in matrices}
    if given != here:
        lines = [
            f"{name}: {given.get(name, 'missing')} in the state, {here.get(name, 'missing')} here"
            for name in dict.fromkeys([*given, *here])
            if given.get(name) != here.get(name)
        ]
        raise ValueError(f"state: the matrices differ ({'; '.join(lines[:8])})")


def _described(shape: Sequence[int], inner: int | None) -> str:
    return f"{tuple(shape)}" + (f" as factors of k = {inner}" if inner is not None else "")
