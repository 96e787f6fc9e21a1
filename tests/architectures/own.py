"""Architectures written out here: no package has them, or not small, or not any more."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .blocks import Feeder, image, tokens
from .catalogue import Example, architecture
from .truth import Truth, Weight

HEADS, LAYERS = 4, 2


class BiLSTM(nn.Module):
    """Tokens, two bidirectional layers, a classifier of every position."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(97, 20)
        self.lstm = nn.LSTM(20, 12, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(24, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(tokens))[0])


@architecture("BiLSTM")
def bilstm() -> Example:
    model = BiLSTM()
    truth = Truth(model)
    head = truth.linear("head.weight")
    # The input of each layer, by direction: the second reads the halves of what the first wrote.
    embed = truth.table("embed.weight")
    before: dict[str, list[Feeder]] = {"": [embed], "_reverse": [embed]}
    for layer in range(2):
        for half, direction in enumerate(before):
            ih, hh = (truth.linear(f"lstm.weight_{x}_l{layer}{direction}") for x in ("ih", "hh"))
            into = ih.into if layer == 0 else ih.into.part("half", slice(half * 12, half * 12 + 12))
            truth.feeds(before[direction], [into])
            # Gate g, third of four, writes the content.
            contents = [w.out.part("gate g", slice(24, 36)) for w in (ih, hh)]
            truth.feeds(contents[:1], [hh])
            before[direction] = list(contents)
    for half, direction in enumerate(before):
        columns = head.into.part("half", slice(half * 12, half * 12 + 12))
        truth.feeds(before[direction], [columns])
    return Example(model, truth, (tokens(),))


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Two levels down and up, whose skips are concatenated (Ronneberger et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = _double(3, 6)
        self.down2 = _double(6, 10)
        self.middle = _double(10, 14)
        self.up2 = nn.ConvTranspose2d(14, 11, 2, stride=2)
        self.merge2 = _double(10 + 11, 9)
        self.up1 = nn.ConvTranspose2d(9, 7, 2, stride=2)
        self.merge1 = _double(6 + 7, 8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(functional.max_pool2d(first, 2))
        x = self.middle(functional.max_pool2d(second, 2))
        x = self.merge2(torch.cat([second, self.up2(x)], dim=1))
        x = self.merge1(torch.cat([first, self.up1(x)], dim=1))
        return self.head(x)


@architecture("UNet")
def unet() -> Example:
    model = UNet()
    truth = Truth(model)

    def double(name: str) -> tuple[Weight, Weight]:
        first, second = truth.conv(f"{name}.0.weight"), truth.conv(f"{name}.3.weight")
        truth.feeds([first], [second])
        return first, second

    down1, down2, middle, merge2, merge1 = (
        double(x) for x in ("down1", "down2", "middle", "merge2", "merge1")
    )
    up2, up1 = (truth.conv(f"{x}.weight", transposed=True) for x in ("up2", "up1"))
    truth.feeds([down1[1]], [down2[0]])
    truth.feeds([down2[1]], [middle[0]])
    truth.feeds([middle[1]], [up2])
    truth.feeds([down2[1]], [merge2[0].into.part("skip", slice(10))])
    truth.feeds([up2], [merge2[0].into.part("up", slice(10, None))])
    truth.feeds([merge2[1]], [up1])
    truth.feeds([down1[1]], [merge1[0].into.part("skip", slice(6))])
    truth.feeds([up1], [merge1[0].into.part("up", slice(6, None))])
    truth.feeds([merge1[1]], [truth.conv("head.weight")])
    return Example(model, truth, (image(),))


class HookedAttention(nn.Module):
    """One weight per head and role, x @ W."""

    def __init__(self) -> None:
        super().__init__()
        for role in ("W_Q", "W_K", "W_V"):
            setattr(self, role, nn.Parameter(torch.randn(HEADS, 48, 10) / 7))
        self.W_O = nn.Parameter(torch.randn(HEADS, 10, 48) / 7)
        for role in ("b_Q", "b_K", "b_V"):
            setattr(self, role, nn.Parameter(torch.zeros(HEADS, 10)))
        self.b_O = nn.Parameter(torch.zeros(48))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            torch.einsum("bpd,hde->bphe", x, getattr(self, f"W_{role}"))
            + getattr(self, f"b_{role}")
            for role in "QKV"
        )
        scores = torch.einsum("bqhe,bkhe->bhqk", q, k) / 10**0.5
        pattern = scores.softmax(dim=-1)
        z = torch.einsum("bkhe,bhqk->bqhe", v, pattern)
        return torch.einsum("bqhe,hed->bqd", z, self.W_O) + self.b_O


class HookedMLP(nn.Module):
    """x @ W_in, then @ W_out."""

    def __init__(self) -> None:
        super().__init__()
        self.W_in, self.b_in = nn.Parameter(torch.randn(48, 80) / 7), nn.Parameter(torch.zeros(80))
        self.W_out, self.b_out = (
            nn.Parameter(torch.randn(80, 48) / 9),
            nn.Parameter(torch.zeros(48)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(x @ self.W_in + self.b_in) @ self.W_out + self.b_out


class HookedBlock(nn.Module):
    """Attention, then the MLP, each added."""

    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.attn = nn.LayerNorm(48), HookedAttention()
        self.ln2, self.mlp = nn.LayerNorm(48), HookedMLP()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class Holder(nn.Module):
    """A module that holds parameters, as TransformerLens has for tables."""

    def __init__(self, **parameters: Tensor) -> None:
        super().__init__()
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value))


class Hooked(nn.Module):
    """The parameters and products of TransformerLens' HookedTransformer, versions 1 to 3."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = Holder(W_E=torch.randn(97, 48))
        self.pos_embed = Holder(W_pos=torch.randn(33, 48))
        self.blocks = nn.ModuleList(HookedBlock() for _ in range(LAYERS))
        self.ln_final = nn.LayerNorm(48)
        self.unembed = Holder(W_U=torch.randn(48, 97) / 7, b_U=torch.zeros(97))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed.W_E[tokens] + self.pos_embed.W_pos[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.ln_final(x) @ self.unembed.W_U + self.unembed.b_U


@architecture("TransformerLens, old layout")
def hooked() -> Example:
    model = Hooked()
    truth = Truth(model)
    before: list[Feeder] = [truth.table("embed.W_E"), truth.table("pos_embed.W_pos")]
    for layer in range(LAYERS):
        at = f"blocks.{layer}."
        q, k, v = (truth.stack(f"{at}attn.W_{role}", 2, 1) for role in "QKV")
        o = truth.stack(f"{at}attn.W_O", 2, 1)
        up, down = (truth.linear(f"{at}mlp.W_{x}", 1, 0) for x in ("in", "out"))
        truth.feeds(before, [*q, *k, *v])
        for head in range(HEADS):
            truth.meet_outputs(q[head].out, k[head].out)
            truth.meet(v[head].out, o[head].into)
        truth.feeds(o, [up])
        truth.feeds([up], [down])
        before = [down]
    truth.feeds(before, [truth.linear("unembed.W_U", 1, 0)])
    return Example(model, truth, (tokens(),))
