"""Layers, options and inputs that decomposed layers refuse, by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import spectral_kernels as sk


class Loud(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Renamed(nn.Linear):
    """A subclass that computes as ``nn.Linear`` does."""


def hooked() -> nn.Linear:
    layer = nn.Linear(4, 3)
    layer.register_forward_hook(lambda *_: None)
    return layer


def with_nan() -> nn.Linear:
    layer = nn.Linear(4, 3)
    layer.weight.data[1, 2] = torch.nan
    return layer


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Bilinear(4, 3, 2), TypeError, "Bilinear; expected nn.Linear"),
        (lambda: nn.Embedding(4, 3), TypeError, "Embedding; expected nn.Linear"),
        (lambda: Loud(4, 3), TypeError, "Loud, which has a forward of its own"),
        (lambda: nn.LazyLinear(3), ValueError, "has no values yet; expected a layer that has run"),
        (lambda: nn.Linear(4, 3, device="meta"), ValueError, "weight of .* is on the meta device"),
        (hooked, ValueError, r"has hooks \(forward_hooks\), which the new layer"),
        (lambda: parametrizations.weight_norm(nn.Linear(4, 3)), ValueError, "has parametrizations"),
        (with_nan, ValueError, "holds NaN or Inf"),
        (lambda: nn.Linear(4, 3, dtype=torch.complex64), TypeError, "complex64; expected float16"),
    ],
)
def test_layers_that_are_refused(make, error: type[Exception], message: str) -> None:
    layer = make()
    with pytest.raises(error, match=message):
        sk.DecomposedLinear.from_linear(layer)


def test_a_subclass_that_computes_the_same_is_taken() -> None:
    assert sk.DecomposedLinear.from_linear(Renamed(4, 3)).rank == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_norm": 1.0}, "max_norm=1.0; expected None: the rows of a product share"),
        ({"scale_grad_by_freq": True}, "scale_grad_by_freq=True; expected False"),
        ({"sparse": True}, "sparse=True; expected False"),
        ({"device": "meta"}, "is on the meta device"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_embeddings_that_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sk.DecomposedEmbedding.from_embedding(nn.Embedding(5, 4, **options))


def test_a_padded_row_that_is_not_zero_is_refused() -> None:
    dense = nn.Embedding.from_pretrained(torch.ones(5, 4), padding_idx=2)
    with pytest.raises(ValueError, match=r"row 2 \(padding_idx\) of the embedding is not zero"):
        sk.DecomposedEmbedding.from_embedding(dense)


def test_constructors_refuse_the_meta_device() -> None:
    for make in (sk.DecomposedLinear, sk.DecomposedEmbedding):
        with pytest.raises(ValueError, match="meta device and has no values to decompose"):
            make(4, 3, device="meta")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(2, 5), r"x is \(2, 5\); expected \(..., 4\)"),
        (torch.randn(()), r"x is \(\); expected \(..., 4\)"),
        (torch.randn(2, 4, dtype=torch.float64), "x is torch.float64; expected torch.float32"),
        (torch.randn(2, 4).half(), "x is torch.float16; expected torch.float32"),
        (torch.ones(2, 4, dtype=torch.int64), "x is torch.int64; expected torch.float32"),
    ],
)
def test_inputs_that_are_refused(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sk.DecomposedLinear(4, 3)(x)


def test_autocast_does_not_make_float64_fit() -> None:
    with (
        torch.autocast("cpu"),
        pytest.raises(ValueError, match=r"x is torch\.float64; expected torch\.float32"),
    ):
        sk.DecomposedLinear(4, 3)(torch.randn(2, 4, dtype=torch.float64))
