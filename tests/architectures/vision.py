"""Image models of the ``timm`` package."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from .blocks import Feeder, fused, image, serial
from .catalogue import Example, architecture
from .truth import Side, Truth, Weight

PACKAGES = ("timm", "torchvision")


@architecture("ResNet (timm)", *PACKAGES)
def resnet() -> Example:
    from timm.models.resnet import BasicBlock, ResNet

    model = ResNet(BasicBlock, layers=(2, 1, 2, 1), channels=(6, 10, 14, 18), num_classes=7)
    truth = Truth(model)
    before: list[Feeder] = [truth.conv("conv1.weight")]
    for stage, blocks in enumerate((2, 1, 2, 1), start=1):
        for block in range(blocks):
            at = f"layer{stage}.{block}."
            first, second = (truth.conv(f"{at}conv{i}.weight") for i in (1, 2))
            truth.feeds([first], [second])
            # An identity skips nothing; a convolution in its place writes as well. The stem is
            # 64 wide, so that the first block has one, too.
            beside: list[Weight] = []
            if block == 0:
                beside = [truth.conv(f"{at}downsample.0.weight")]
            truth.feeds(before, [first, *beside])
            before = [second, *beside]
    truth.feeds(before, [truth.linear("fc.weight")])
    return Example(model, truth, (image(64),))


@architecture("ResNet with bottlenecks (timm)", *PACKAGES)
def resnet_bottleneck() -> Example:
    from timm.models.resnet import Bottleneck, ResNet

    model = ResNet(
        Bottleneck, layers=(2, 1, 1, 1), channels=(6, 10, 14, 18), num_classes=7, stem_type="deep",
        stem_width=5, avg_down=True,
    )  # fmt: skip
    truth = Truth(model)
    stem = [truth.conv(f"conv1.{i}.weight") for i in (0, 3, 6)]
    for one, other in pairwise(stem):
        truth.feeds([one], [other])
    before: list[Feeder] = [stem[-1]]
    for stage, blocks in enumerate((2, 1, 1, 1), start=1):
        for block in range(blocks):
            at = f"layer{stage}.{block}."
            first, second, third = (truth.conv(f"{at}conv{i}.weight") for i in (1, 2, 3))
            truth.feeds([first], [second])
            truth.feeds([second], [third])
            beside: list[Weight] = []
            if block == 0:
                # A pooling comes first.
                beside = [truth.conv(f"{at}downsample.1.weight")]
            truth.feeds(before, [first, *beside])
            before = [third, *beside]
    truth.feeds(before, [truth.linear("fc.weight")])
    return Example(model, truth, (image(64),))


@architecture("ConvNeXt (timm)", *PACKAGES)
def convnext() -> Example:
    from timm.models.convnext import ConvNeXt

    depths = (2, 1, 2, 1)
    model = ConvNeXt(depths=depths, dims=(6, 10, 14, 18), num_classes=7)
    truth = Truth(model)
    before: list[Feeder] = [truth.conv("stem.0.weight")]
    for stage, blocks in enumerate(depths):
        if stage:
            between = truth.conv(f"stages.{stage}.downsample.1.weight")
            truth.feeds(before, [between])
            before = [between]
        for block in range(blocks):
            # The convolution of each channel by itself, conv_dw, lets pass.
            at = f"stages.{stage}.blocks.{block}.mlp."
            up, down = (truth.linear(f"{at}fc{i}.weight") for i in (1, 2))
            truth.feeds(before, [up])
            truth.feeds([up], [down])
            before = [down]
    truth.feeds(before, [truth.linear("head.fc.weight")])
    return Example(model, truth, (image(64),))


@architecture("Swin (timm)", *PACKAGES)
def swin() -> Example:
    from timm.models.swin_transformer import SwinTransformer

    depths, heads = (2, 2), (2, 4)
    model = SwinTransformer(
        img_size=32, patch_size=2, embed_dim=20, depths=depths, num_heads=heads, window_size=4,
        mlp_ratio=3.0, num_classes=7,
    )  # fmt: skip
    truth = Truth(model)
    before: list[Feeder] = [truth.conv("patch_embed.proj.weight")]
    for stage, blocks in enumerate(depths):
        if stage:
            merge = truth.linear(f"layers.{stage}.downsample.reduction.weight")
            # Four neighbours side by side, each with all channels.
            width = len(merge.into) // 4
            quarters = [
                merge.into.part("a neighbour", slice(i * width, (i + 1) * width)) for i in range(4)
            ]
            for writer in before:
                truth.meet_once(_out(writer), quarters)
            before = [merge]
        for block in range(blocks):
            at = f"layers.{stage}.blocks.{block}."
            before = _block(truth, at, before, heads[stage])
    truth.feeds(before, [truth.linear("head.fc.weight")])
    return Example(model, truth, (image(32),))


def _out(writer: Feeder) -> Side:
    return writer.out if isinstance(writer, Weight) else writer


def _block(truth: Truth, at: str, before: Sequence[Feeder], heads: int) -> list[Feeder]:
    qkv, o, up, down = (
        truth.linear(f"{at}{x}.weight") for x in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    )
    return serial(truth, before, fused(qkv, o, heads), [up], down)


@architecture("ViT (timm)", *PACKAGES)
def vit() -> Example:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=28, patch_size=7, embed_dim=48, depth=3, num_heads=4, mlp_ratio=1.5, num_classes=7
    )
    truth = Truth(model)
    before: list[Feeder] = [truth.conv("patch_embed.proj.weight"), truth.table("pos_embed")]
    for block in range(3):
        before = _block(truth, f"blocks.{block}.", before, 4)
    truth.feeds(before, [truth.linear("head.weight")])
    return Example(model, truth, (image(28),))


@architecture("EfficientNet (timm)", *PACKAGES)
def efficientnet() -> Example:
    from timm.models.efficientnet import EfficientNet, decode_arch_def, round_channels

    repeats = (1, 2, 2)
    # Of efficientnet_b0, narrower: a separable block, then inverted residuals, each with
    # squeeze-excitation.
    blocks = [["ds_r1_k3_s1_e1_c12_se0.25"], ["ir_r2_k3_s2_e6_c20_se0.25"],
              ["ir_r2_k5_s2_e6_c28_se0.25"]]  # fmt: skip
    model = EfficientNet(
        decode_arch_def(blocks), num_classes=7, num_features=72, stem_size=16,
        round_chs_fn=partial(round_channels, divisor=4),
    )  # fmt: skip
    truth = Truth(model)
    before: list[Feeder] = [truth.conv("conv_stem.weight")]
    for stage, count in enumerate(repeats):
        for block in range(count):
            before = [_inverted(truth, f"blocks.{stage}.{block}.", before, separable=stage == 0)]
    head = truth.conv("conv_head.weight")
    truth.feeds(before, [head])
    truth.feeds([head], [truth.linear("classifier.weight")])
    return Example(model, truth, (image(64),))


def _inverted(truth: Truth, at: str, before: list[Feeder], *, separable: bool) -> Weight:
    """A block whose middle is a convolution of each channel by itself, which lets pass."""
    if not separable:
        expand = truth.conv(f"{at}conv_pw.weight")
        truth.feeds(before, [expand])
        before = [expand]
    reduce, excite = (truth.conv(f"{at}se.conv_{x}.weight") for x in ("reduce", "expand"))
    truth.feeds(before, [reduce])
    truth.feeds([reduce], [excite])
    project = truth.conv(f"{at}conv_pw{'' if separable else 'l'}.weight")
    # What is scaled, and its scale.
    truth.feeds([*before, excite], [project])
    return project
