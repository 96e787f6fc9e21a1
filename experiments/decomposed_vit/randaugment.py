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
    """Images in [0, 1] after `OPERATIONS_EACH` operations, drawn for each image by itself."""
    images = images.clone()
    for _ in range(OPERATIONS_EACH):
        drawn = torch.randint(len(OPERATIONS), (len(images),), device=images.device)
        sign = 2.0 * torch.randint(2, (len(images),), device=images.device) - 1.0
        for index, operation in enumerate(OPERATIONS.values()):
            chosen = (drawn == index).nonzero()[:, 0]
            if len(chosen):
                images[chosen] = operation(images[chosen], sign[chosen])
    return images


def transform(images: Tensor, rows: Tensor) -> Tensor:
    """Nearest pixels at ``rows`` (count, 2, 3) times (x, y, 1) of each pixel, which count from the
    centre; black where that is outside."""
    height, width = images.shape[-2:]
    # affine_grid counts in halves of a side.
    half = torch.tensor([width / 2, height / 2], device=images.device)
    linear = rows[..., :2] * half / half[:, None]
    theta = torch.cat([linear, (rows[..., 2] / half)[..., None]], dim=-1)
    grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, mode="nearest", align_corners=False)


def _geometric(entries: Callable[[float], list[list[float]]]) -> Operation:
    def operation(images: Tensor, sign: Tensor) -> Tensor:
        table = torch.tensor([entries(-1.0), entries(1.0)], device=images.device)
        return transform(images, table[(sign > 0).long()])

    return operation


def _rotation(sign: float) -> list[list[float]]:
    angle = sign * math.radians(30 * MAGNITUDE)
    cosine, sine = math.cos(angle), math.sin(angle)
    return [[cosine, -sine, 0.0], [sine, cosine, 0.0]]


def _translate(images: Tensor, sign: Tensor, axis: int) -> Tensor:
    # 150 of 331 pixels at magnitude 30, whatever the side.
    rows = torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)
    rows[:, axis, 2] = sign * int(150 / 331 * images.shape[-1 - axis] * MAGNITUDE)
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
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device)
    return (images * weights[:, None, None]).sum(1, keepdim=True)


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
    "shear_x": _geometric(lambda sign: [[1.0, sign * 0.3 * MAGNITUDE, 0.0], [0.0, 1.0, 0.0]]),
    "shear_y": _geometric(lambda sign: [[1.0, 0.0, 0.0], [sign * 0.3 * MAGNITUDE, 1.0, 0.0]]),
    "translate_x": lambda images, sign: _translate(images, sign, 0),
    "translate_y": lambda images, sign: _translate(images, sign, 1),
    "rotate": _geometric(_rotation),
    "brightness": _blend(torch.zeros_like),
    "color": _blend(grey),
    "contrast": _blend(lambda images: grey(images).mean((1, 2, 3), keepdim=True)),
    "sharpness": _blend(_smoothed),
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
