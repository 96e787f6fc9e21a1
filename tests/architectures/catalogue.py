"""The list of architectures, each with the packages that it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from .truth import Truth

__all__ = ["CATALOGUE", "Architecture", "Example", "architecture", "prepare"]


@dataclass(frozen=True)
class Example:
    """A small model, what its forward takes, and the pairs that are right."""

    model: nn.Module
    truth: Truth
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Architecture:
    """A builder with its name, and the packages that the model comes from."""

    name: str
    packages: tuple[str, ...]
    build: Callable[[], Example]

    @property
    def missing(self) -> str | None:
        """Why it cannot be built here."""
        absent = [name for name in self.packages if find_spec(name) is None]
        if not absent:
            return None
        return f"needs the extra [architectures]: {', '.join(absent)} is not installed"

    def example(self) -> Example:
        """The same model at every call, in evaluation mode."""
        prepare()
        torch.manual_seed(0)
        example = self.build()
        example.model.eval()
        return example


CATALOGUE: dict[str, Architecture] = {}


def architecture(
    name: str, *packages: str
) -> Callable[[Callable[[], Example]], Callable[[], Example]]:
    """Put a builder on the list."""

    def enter(build: Callable[[], Example]) -> Callable[[], Example]:
        assert name not in CATALOGUE, name
        CATALOGUE[name] = Architecture(name, packages, build)
        return build

    return enter


_declared: list[torch.library.Library] = []


def prepare() -> None:
    """Let torchvision, which timm and transformers import, load beside a build of torch that it
    was not compiled for.

    Its wheels belong to builds with CUDA. Beside others its operators do not load, and then its
    import fails where it describes the shapes of two of them; declared without a kernel they can
    be described, and none of the models here calls them.
    """
    if _declared or find_spec("torchvision") is None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
