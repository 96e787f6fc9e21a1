"""The small Vision Transformer of the paper, that of s-chh's "PyTorch-Scratch-ViT"."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from experiments.decomposed_vit.presets import Settings


class VisionTransformer(nn.Module):
    """Images (batch, channels, side, side) float32 -> logits (batch, classes).

    Patches have positions, the class token has none; the class token's last state goes through
    ``pre_output`` and tanh before the output. With the paper's sizes and 32 × 32 × 3 images:

    ==================  =============================  ========
    patches             128 × 3 × 4 × 4 + 128             6,272
    positions           64 × 128                          8,192
    class token         128                                 128
    query, key, value   6 blocks × 3 × (128² + 128)     297,216
    projection          6 × (128² + 128)                 99,072
    fc1                 6 × (256 × 128 + 256)           198,144
    fc2                 6 × (128 × 256 + 128)           197,376
    LayerNorms          13 × 256                          3,328
    pre_output          128² + 128                       16,512
    output              10 × 128 + 10                     1,290
    all                                                 827,530
    ==================  =============================  ========
    """

    def __init__(self, settings: Settings, side: int, channels: int, classes: int) -> None:
        super().__init__()
        d, patch = settings.d_model, settings.patch
        if side % patch:
            raise ValueError(f"images have side {side} and patches {patch}; expected a multiple")
        self.patches = nn.Conv2d(channels, d, kernel_size=patch, stride=patch)
        self.positions = nn.Embedding((side // patch) ** 2, d)
        self.class_token = nn.Parameter(torch.zeros(d))
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.Sequential(*(Block(settings) for _ in range(settings.layers)))
        self.norm = nn.LayerNorm(d)
        self.pre_output = nn.Linear(d, d)
        self.output = nn.Linear(d, classes)
        self._initialize(settings.initial_deviation)

    def _initialize(self, deviation: float) -> None:
        """Normal; biases 0."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 or name == "class_token":
                nn.init.normal_(parameter, std=deviation)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the classes."""
        patches = self.patches(images).flatten(2).transpose(1, 2)
        places = torch.arange(patches.shape[1], device=images.device)
        token = self.class_token.expand(len(images), 1, -1)
        x = self.dropout(torch.cat([token, patches + self.positions(places)], dim=1))
        last = self.norm(self.blocks(x)[:, 0])
        logits: Tensor = self.output(torch.tanh(self.pre_output(last)))
        return logits


class Block(nn.Module):
    """Attention, then feed forward, each on a normalised copy of the residual stream."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        d = settings.d_model
        self.norm_attention = nn.LayerNorm(d)
        self.attention = Attention(d, settings.heads)
        self.norm_mlp = nn.LayerNorm(d)
        self.fc1 = nn.Linear(d, 2 * d)
        self.fc2 = nn.Linear(2 * d, d)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, d) -> the same shape."""
        x = x + self.dropout(self.attention(self.norm_attention(x)))
        hidden = nn.functional.gelu(self.fc1(self.norm_mlp(x)))
        added: Tensor = self.dropout(self.fc2(hidden))
        return x + added


class Attention(nn.Module):
    """Attention of all tokens to all, (batch, tokens, d) -> the same shape."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(d, d) for _ in range(3))
        self.projection = nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        """Each token gathers from all."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        gathered = nn.functional.scaled_dot_product_attention(query, key, value)
        output: Tensor = self.projection(gathered.transpose(1, 2).flatten(2))
        return output
