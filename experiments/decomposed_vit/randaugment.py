"""RandAugment (Cubuk et al. 2020), two of fourteen operations at magnitude 9 of 30.

Operations and what a magnitude means are torchvision's, which the paper's network was trained with:
of each image or channel what Pillow's function of the name gives, in floats between 0 and 1 rather
than bytes. Images are (count, channels, height, width), ``sign`` is 1 or -1 of each, (count,).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

MAGNITUDE = 9 / 30
OPERATIONS_EACH = 2

Operation = Callable[[Tensor, Tensor], Tensor]


def rand_augment(images: Tensor) -> Tensor:
    """Images in [0, 1] after `OPERATIONS_EACH` operations, drawn for each image by itself.

    Every operation is applied to every image and one result of each is kept: sizes that depend on
    what was drawn could not be in a CUDA graph, and the network costs much more.
    """
    count = len(images)
    every = torch.arange(count, device=images.device)
    for _ in range(OPERATIONS_EACH):
        drawn = torch.randint(len(OPERATIONS), (count,), device=images.device)
        sign = 2.0 * torch.randint(2, (count,), device=images.device) - 1.0
        results = [operation(images, sign) for operation in OPERATIONS.values()]
        images = torch.stack(results)[drawn, every]
    return images


def transform(images: Tensor, rows: Tensor) -> Tensor:
    """Nearest pixels at ``rows`` (count, 2, 3) times (x, y, 1) of each pixel, which count from the
    centre; black where that is outside."""
    height, width = images.shape[-2:]
    # affine_grid counts in halves of a side.
    theta = rows.clone()
    theta[:, 0, 1] *= height / width
    theta[:, 1, 0] *= width / height
    theta[:, 0, 2] /= width / 2
    theta[:, 1, 2] /= height / 2
    grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, mode="nearest", align_corners=False)


def _entry(row: int, column: int, size: Callable[[Tensor], float]) -> Operation:
    """`transform` by the unit matrix with ``sign`` times a size at one place."""

    def operation(images: Tensor, sign: Tensor) -> Tensor:
        rows = torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)
        rows[:, row, column] = sign * size(images)
        return transform(images, rows)

    return operation


def _shear(axis: int) -> Operation:
    return _entry(axis, 1 - axis, lambda images: 0.3 * MAGNITUDE)


def _translate(axis: int) -> Operation:
    # 150 of 331 pixels at magnitude 30, whatever the side.
    return _entry(axis, 2, lambda images: int(150 / 331 * images.shape[3 - axis] * MAGNITUDE))


def _rotate(images: Tensor, sign: Tensor) -> Tensor:
    angle = math.radians(30 * MAGNITUDE)
    rows = torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)
    rows[:, :, :2] *= math.cos(angle)
    rows[:, 0, 1] = -sign * math.sin(angle)
    rows[:, 1, 0] = sign * math.sin(angle)
    return transform(images, rows)


def _blend(background: Callable[[Tensor], Tensor]) -> Operation:
    """Away from ``background`` or towards it, by 0.9 times the magnitude."""

    def operation(images: Tensor, sign: Tensor) -> Tensor:
        behind = background(images)
        factor = 1.0 + sign[:, None, None, None] * 0.9 * MAGNITUDE
        return (behind + factor * (images - behind)).clamp(0.0, 1.0)

    return operation


def grey(images: Tensor) -> Tensor:
    """Luminance (ITU-R 601), one channel; an image that has one is its own."""
    if images.shape[1] == 1:
        return images
    red, green, blue = (images[:, i : i + 1] for i in range(3))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _smoothed(images: Tensor) -> Tensor:
    channels = images.shape[1]
    kernel = torch.ones(3, 3, device=images.device)
    kernel[1, 1] = 5.0
    behind = images.clone()
    behind[..., 1:-1, 1:-1] = nn.functional.conv2d(
        images, (kernel / 13.0).expand(channels, 1, 3, 3), groups=channels
    )
    return behind


def _posterize(images: Tensor, sign: Tensor) -> Tensor:
    lost = 1 << round(4 * MAGNITUDE)
    levels = (images * 255.0).round()
    return (levels / lost).floor() * (lost / 255.0)


def _solarize(images: Tensor, sign: Tensor) -> Tensor:
    return torch.where(images >= 1.0 - MAGNITUDE, 1.0 - images, images)


def _autocontrast(images: Tensor, sign: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp(min=1e-6), images)


def _equalize(images: Tensor, sign: Tensor) -> Tensor:
    levels = (images * 255.0).round().long().flatten(2)
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.long, device=images.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    brightest = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - brightest) // 255
    below = counts.cumsum(2) - counts
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    equal = table.gather(2, levels).view_as(images) / 255.0
    return torch.where((step > 0)[..., None], equal, images)


OPERATIONS: dict[str, Operation] = {
    "identity": lambda images, sign: images,
    "shear_x": _shear(0),
    "shear_y": _shear(1),
    "translate_x": _translate(0),
    "translate_y": _translate(1),
    "rotate": _rotate,
    "brightness": _blend(torch.zeros_like),
    "color": _blend(grey),
    "contrast": _blend(lambda images: grey(images).mean((1, 2, 3), keepdim=True)),
    "sharpness": _blend(_smoothed),
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
