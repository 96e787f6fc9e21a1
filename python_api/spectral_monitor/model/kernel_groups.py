"""Groups of convolutions in a state dict, which does not list them.

A kernel of g groups reads 1 / g of the channels that come in: fewer than any layer gives, or fewer
than the layer before it in the same block gives. Both are guesses, and say so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile

__all__ = ["kernel_groups"]

Shape = tuple[int, ...]

# A kernel and the one before it, ``block.conv1.conv.weight``: what they may differ in.
_OWN_PARTS = 3
_DEPTHWISE = re.compile("depthwise|dwconv|conv_dw|dw_conv")
_IMAGES = re.compile("patch|image|pixel|visual|conv_in|rgb")


def kernel_groups(
    kernels: Mapping[str, Shape], outputs: Mapping[str, int], tables: Collection[str]
) -> dict[str, tuple[int, str]]:
    """Kernel -> (its groups, what was guessed); those that are read as one alone are left out.

    Args:
        kernels: shapes (outputs, inputs of a group, taps...) by qualified name.
        outputs: layer -> channels that it gives, in the order of the layers; 0 where not known.
        tables: those of them that are embeddings, which no kernel follows in groups.
    """
    given = {_inputs_of_model(kernels, outputs), *outputs.values()}
    found: dict[str, tuple[int, str]] = {}
    before, neighbour = 0, ""
    for name, size in outputs.items():
        if name in kernels and _DEPTHWISE.search(name) and kernels[name][1] == 1:
            found[name] = kernels[name][0], "depthwise by its name"
        elif name in kernels and neighbour and not _reads_images(name, kernels[name]):
            # Branches side by side read the same channels.
            is_next = _share_a_block(name, neighbour) and (
                neighbour not in kernels or kernels[neighbour][1] != kernels[name][1]
            )
            groups, note = _guess(kernels[name], before, given, is_next)
            if note:
                found[name] = groups, note
        if size:
            before, neighbour = 0 if name in tables else size, name
    return found


def _reads_images(name: str, shape: Shape) -> bool:
    return shape[1] in (1, 3, 4) and _IMAGES.search(name) is not None


def _inputs_of_model(kernels: Mapping[str, Shape], outputs: Mapping[str, int]) -> int:
    """Channels of the images, where a kernel is the first layer; 0 where none is."""
    first = next((name for name, size in outputs.items() if size), "")
    return kernels[first][1] if first in kernels else 0


def _guess(shape: Shape, before: int, given: Collection[int], is_next: bool) -> tuple[int, str]:
    outputs, inputs, *taps = shape
    if inputs == 1:
        if before == 1 or math.prod(taps) == 1:
            return 1, ""
        return outputs, "guessed to be depthwise: the layer before it gives more than 1 channel"
    groups, rest = divmod(before, inputs)
    if groups < 2 or rest or outputs % groups:
        return 1, ""
    told = f"{groups} groups of the {before} channels before it"
    # With as many channels as before or a multiple: else they may have been halved by a gate.
    if outputs % before == 0:
        if inputs not in given:
            return groups, f"guessed to be {told}: no layer gives {inputs}"
        # Kernels of one tap, as on the ways around a block, read what they say.
        if is_next and math.prod(taps) > 1:
            return groups, f"guessed to be {told}"
    is_plain = inputs in given and (outputs % before != 0 or math.prod(taps) == 1)
    return 1, "" if is_plain else f"read as one; it may be {told}"


def _share_a_block(name: str, other: str) -> bool:
    parts = name.split(".")
    pairs: Sequence[tuple[str, str]] = list(zip(parts, other.split("."), strict=False))
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return common >= len(parts) - _OWN_PARTS
