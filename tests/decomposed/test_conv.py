"""Convolutions whose kernel is U Sigma Vh: k filters, then a mix of their channels."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from spectral_monitor.decomposed.layers.conv import (
    DecomposedConv1d,
    DecomposedConv2d,
    DecomposedConv3d,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.tolerances import REORDERED

KINDS = {
    nn.Conv1d: (DecomposedConv1d, (11,)),
    nn.Conv2d: (DecomposedConv2d, (11, 10)),
    nn.Conv3d: (DecomposedConv3d, (7, 6, 8)),
}
# More rows than columns and the reverse: (c_in, c_out).
CHANNELS = [(4, 8), (8, 4), (2, 40)]
OPTIONS = [
    {},
    {"bias": False},
    {"stride": 2, "padding": 1},
    {"dilation": 2, "padding": "same"},
    {"padding": "valid"},
    {"groups": 2},
    {"padding": 1, "padding_mode": "circular"},
    {"padding": 2, "padding_mode": "reflect", "stride": 2},
    {"padding": "same", "padding_mode": "replicate", "groups": 2},
]


def dense(kind: type[nn.Module], channels: tuple[int, int], **options: object) -> nn.Module:
    return kind(*channels, 3, **options).double()


def image(kind: type[nn.Module], channels: int, batch: tuple[int, ...] = (2,)) -> Tensor:
    return torch.randn(*batch, channels, *KINDS[kind][1], dtype=torch.float64)


def chain_rule(layer: nn.Module, d_weight: Tensor) -> list[Tensor]:
    """Return dU, dSigma and dVh from the gradient of the kernel."""
    U, Sigma, Vh = (t.detach() for t in layer.factors())
    d = d_weight.reshape(*U.shape[:-1], -1)
    return [d @ (Sigma @ Vh).mT, U.mT @ d @ Vh.mT, (U @ Sigma).mT @ d]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_full_rank_is_the_dense_layer(kind, channels, options) -> None:
    plain = dense(kind, channels, **options)
    layer = KINDS[kind][0].from_conv(plain)
    for batch in ((2,), ()):
        x = image(kind, channels[0], batch).requires_grad_()
        twin = x.detach().clone().requires_grad_()
        y, want = layer(x), plain(twin)
        torch.testing.assert_close(y, want, **REORDERED)
        seed = torch.randn_like(y)
        layer.zero_grad()
        plain.zero_grad()
        y.backward(seed)
        want.backward(seed)
        torch.testing.assert_close(x.grad, twin.grad, **REORDERED)
        for factor, expected in zip(
            layer.factors(), chain_rule(layer, plain.weight.grad), strict=True
        ):
            torch.testing.assert_close(factor.grad, expected, rtol=1e-10, atol=1e-10)
        if plain.bias is not None:
            torch.testing.assert_close(layer.bias.grad, plain.bias.grad, **REORDERED)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rank", [1, 3, 0.5, "break-even"])
def test_lower_ranks_are_best_approximations(rank: float | str, groups: int) -> None:
    plain = dense(nn.Conv2d, (8, 12), groups=groups)
    layer = DecomposedConv2d.from_conv(plain, rank)
    m, n, k = 12 // groups, 72 // groups, layer.rank
    batch = () if groups == 1 else (groups,)
    assert layer.shape == (m, n)
    assert [tuple(t.shape) for t in layer.factors()] == [
        (*batch, m, k),
        (*batch, k, k),
        (*batch, k, n),
    ]
    each = plain.weight.reshape(groups, m, n)
    rest = torch.linalg.svdvals(each)[:, k:].square().sum().sqrt()
    torch.testing.assert_close((plain.weight - layer.weight).norm(), rest, rtol=1e-10, atol=0)
    x = image(nn.Conv2d, 8)
    torch.testing.assert_close(layer(x), layer.to_conv()(x), **REORDERED)
    if rank == "break-even":
        assert sum(t.numel() for t in layer.factors()) <= plain.weight.numel()


def test_depthwise() -> None:
    plain = dense(nn.Conv1d, (6, 6), groups=6)
    layer = DecomposedConv1d.from_conv(plain)
    assert layer.rank == 1
    x = image(nn.Conv1d, 6)
    torch.testing.assert_close(layer(x), plain(x), **REORDERED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_round_trip_and_smallest(kind, options) -> None:
    plain = dense(kind, (4, 8), **options).eval()
    plain.weight.requires_grad_(False)
    layer = KINDS[kind][0].from_conv(plain)
    again = layer.to_conv()
    assert repr(again) == repr(plain)
    torch.testing.assert_close(again.state_dict(), plain.state_dict())
    assert not again.training
    assert not again.weight.requires_grad
    x = image(kind, 4)
    m, n = layer.shape
    for rank in range(1, min(m, n) + 1):
        thin = KINDS[kind][0].from_conv(plain, rank)
        small = thin.smallest()
        torch.testing.assert_close(small(x), thin(x), **REORDERED)
        entries = sum(p.numel() for name, p in small.named_parameters() if "bias" not in name)
        assert entries == plain.groups * min(m * n, rank * (m + n))


def test_constructor_draws_what_the_dense_layer_draws() -> None:
    torch.manual_seed(3)
    plain = nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2, False, "circular")
    after = torch.rand(1)
    torch.manual_seed(3)
    layer = DecomposedConv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2, False, "circular")
    assert torch.equal(torch.rand(1), after)
    assert repr(layer.to_conv()) == repr(plain)
    torch.testing.assert_close(layer.weight, plain.weight)


def test_copies_files_and_dtypes() -> None:
    layer = DecomposedConv2d(4, 6, 3, groups=2, rank=2)
    x = torch.randn(2, 4, 7, 7)
    y = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), y)
    fresh = DecomposedConv2d(4, 6, 3, groups=2, rank=2)
    fresh.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(fresh(x), y)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        made = copy.deepcopy(layer).to(dtype)(x.to(dtype))
        assert made.dtype == dtype
        # The channels between are rounded too: a few units of the last place of 16 bits.
        torch.testing.assert_close(made.float(), y, rtol=0, atol=0.03)
    assert repr(layer) == (
        "DecomposedConv2d(4, 6, rank=2, kernel_size=(3, 3), stride=(1, 1), padding=(0, 0), "
        "dilation=(1, 1), groups=2, padding_mode='zeros', bias=True)"
    )


@pytest.mark.parametrize("channels", CHANNELS, ids=str)
def test_compiles_as_one_graph_and_under_autocast(channels: tuple[int, int]) -> None:
    layer = DecomposedConv2d(*channels, 3, padding="same", rank=2)
    x = torch.randn(2, channels[0], 9, 9)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    plain = layer.to_conv()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, want = layer(x), plain(x)
    assert y.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(y, want, rtol=0, atol=0.03)
    y.float().sum().backward()
    assert {p.grad.dtype for p in layer.parameters()} == {torch.float32}


class Sizes(TorchDispatchMode):
    """Keeps the entries of the largest result of any operation, and the shapes of products."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.products: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default:
            self.products.append(tuple(out.shape))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, Tensor):
                self.largest = max(self.largest, t.numel())
        return out


@pytest.mark.parametrize("channels", [(96, 128), (128, 96), (4, 400)], ids=str)
def test_the_kernel_is_formed_neither_forward_nor_backward(channels: tuple[int, int]) -> None:
    plain = nn.Conv2d(*channels, 3)
    layer = DecomposedConv2d.from_conv(plain, 2)
    x = torch.randn(1, channels[0], 5, 5)
    with Sizes() as sizes:
        layer(x).sum().backward()
    with Sizes() as dense_sizes:
        plain(x).sum().backward()
    assert sizes.largest < plain.weight.numel() <= dense_sizes.largest


@pytest.mark.parametrize("channels", [(4, 400), (400, 4)], ids=str)
def test_sigma_is_merged_into_the_smaller_factor(channels: tuple[int, int]) -> None:
    layer = DecomposedConv2d(*channels, 3, rank=2)
    with torch.no_grad(), Sizes() as sizes:
        layer(torch.randn(1, channels[0], 5, 5))
    assert sizes.products == [(2, 36) if channels == (4, 400) else (4, 2)]


class OwnForward(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


class Standardised(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean(), bias)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: nn.ConvTranspose2d(4, 3, 3),
            TypeError,
            r"ConvTranspose2d; expected nn\.Conv2d",
        ),
        (lambda: nn.Conv1d(4, 3, 3), TypeError, r"Conv1d; expected nn\.Conv2d"),
        (lambda: OwnForward(4, 3, 3), TypeError, "OwnForward, which has a forward of its own"),
        (lambda: Standardised(4, 3, 3), TypeError, "Standardised, which has a _conv_forward of"),
        (lambda: nn.LazyConv2d(3, 3), ValueError, "has no values yet"),
        (lambda: nn.Conv2d(4, 3, 3, device="meta"), ValueError, "on the meta device"),
        (
            lambda: parametrizations.spectral_norm(nn.Conv2d(4, 3, 3)),
            ValueError,
            "parametrizations",
        ),
    ],
)
def test_layers_that_are_refused(make, error: type[Exception], message: str) -> None:
    layer = make()
    with pytest.raises(error, match=message):
        DecomposedConv2d.from_conv(layer)


def test_ranks_and_factors_that_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rank is 7; expected 1 <= rank .* = 6 for a 6 x 18"):
        DecomposedConv2d(4, 12, 3, groups=2, rank=7)
    layer = DecomposedConv2d(4, 12, 3, groups=2, rank=3)
    with pytest.raises(ValueError, match=r"expected \(2, 6, k\), \(2, k, k\), \(2, k, 18\)"):
        layer.set_factors(torch.randn(12, 3), torch.randn(3, 3), torch.randn(3, 18))
    layer.set_factors(torch.ones(2, 6, 1), torch.ones(2, 1, 1), torch.ones(2, 1, 18))
    assert layer.rank == 1
