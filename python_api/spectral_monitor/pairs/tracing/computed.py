"""Weights that layers compute of other parameters, each as one weight for the time of a pass."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from spectral_monitor.model.getters import without_wrappers
from spectral_monitor.model.parametrized import Parametrized, is_computing, parametrized_in
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["Fixed", "fixed_weights"]


@dataclass(frozen=True, slots=True)
class Fixed:
    """Computed weights by name, and the parameters that they stand for."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    parts: set[str] = field(default_factory=set)


@contextlib.contextmanager
def fixed_weights(model: nn.Module) -> Iterator[Fixed]:
    """Inside, parametrized weights are computed once, and are what the forward method sees.

    To be used where the attributes of modules are restored afterwards (`running.undisturbed`).
    """
    found = Fixed()
    known: dict[int, list[tuple[Parametrized, Tensor]]] = {}
    with parametrize.cached():
        for path, module in model.named_modules(remove_duplicate=False):
            # A shared module is met again, when its hooks are gone.
            for made, weight in known.setdefault(id(module), _fixed(module)):
                prefix = f"{path}." if path else ""
                found.weights[without_wrappers(prefix + made.leaf)] = weight
                found.parts.update(without_wrappers(prefix + part) for part in made.parts)
        yield found


def _fixed(module: nn.Module) -> list[tuple[Parametrized, Tensor]]:
    found = []
    for made in parametrized_in(module):
        # What is cached is computed when it is first asked for.
        weight = getattr(module, made.leaf)
        if made.leaf in module.__dict__:
            computed = None if made.effective is None else made.effective()
            assert computed is not None
            weight = module.__dict__[made.leaf] = computed
        found.append((made, weight))
    if any(made.leaf in module.__dict__ for made, _ in found):
        hooks = module._forward_pre_hooks.items()
        # A new table: the old one is put back as it was.
        module.__dict__["_forward_pre_hooks"] = OrderedDict(
            (key, hook) for key, hook in hooks if not is_computing(hook)
        )
    return found
