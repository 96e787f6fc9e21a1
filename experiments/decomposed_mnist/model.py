"""A ReLU network of three linear layers, and the groups of them that are decomposed."""

from __future__ import annotations

from collections import OrderedDict

import torch
from spectral_monitor.decomposed.convert.model import decompose_model
from torch import nn

from experiments.decomposed_mnist.data import CLASSES
from experiments.decomposed_mnist.presets import Settings

GROUPS = {
    "none": [],
    "layer1": ["layer1"],
    "layer2": ["layer2"],
    "layer3": ["layer3"],
    "layers23": ["layer2", "layer3"],
    "all": ["layer1", "layer2", "layer3"],
}


def make_model(settings: Settings, pixels: int) -> nn.Sequential:
    """Pixels (batch, pixels) float32 -> logits (batch, 10).

    The text of appendices E and F names one hidden layer, but decomposes three layers, and only
    two hidden layers of 256 have its parameter counts: 269,322 for 784 pixels, 180,714 with all
    layers at 40 % of their ranks, and 159,890 when Sigma is merged into U.

    All initial parameters are scaled, then the chosen layers are decomposed: the factors of the
    arms have the product that the baseline starts from, from the same random numbers.
    """
    width = settings.width
    model = nn.Sequential(
        OrderedDict(
            layer1=nn.Linear(pixels, width),
            relu1=nn.ReLU(),
            layer2=nn.Linear(width, width),
            relu2=nn.ReLU(),
            layer3=nn.Linear(width, CLASSES),
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(settings.initial_scale)
    patterns = GROUPS[settings.decompose]
    if patterns:
        decompose_model(model, dict.fromkeys(patterns, settings.rank))
    return model
