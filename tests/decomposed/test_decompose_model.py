"""Layers of a model replaced by decomposed ones, in place, and turned back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from spectral_monitor.decomposed.layers.layer import DecomposedLayer
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as spectral_norm_by_hooks

import spectral_kernels as sk
from tests.support.decomposed_models import LanguageModel, Mixed, count, error, mlp, state, types

# float32: the SVD and two or three more products. Measured: at most 2.0e-6 over all models below.
SAME = 1e-5


def decomposed_names(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, DecomposedLayer)]


def test_parameter_counts_of_the_paper() -> None:
    """Appendix E: 67.10 % of the size in training and 59.37 % in inference at 40 % of all ranks."""
    model = mlp(784, 256, 256, 10)
    assert count(model) == 269_322
    sk.decompose_model(model, {"*": 0.4})
    assert count(model) == 180_714
    sk.recompose_model(model, form="smallest")
    assert count(model) == 159_890


def test_full_rank_computes_the_same_and_recomposes_to_the_same_model() -> None:
    model, x = Mixed(), torch.randn(3, 4, 7)
    before, original, y = types(model), state(model), model(x)
    assert sk.decompose_model(model, {"*": 1.0}) is model
    assert error(model(x), y) < SAME
    assert decomposed_names(model) == [
        "conv", "attn.in_proj", "attn.out_proj",
        "blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2", "by_name.head",
    ]  # fmt: skip
    assert sk.recompose_model(model) is model
    assert types(model) == before
    assert error(model(x), y) < SAME
    after = model.state_dict()
    assert list(after) == list(original)
    for name, value in original.items():
        assert error(after[name], value) < SAME, name


def test_the_first_pattern_that_fits_decides() -> None:
    model = Mixed()
    sk.decompose_model(model, {"blocks.0.?": 3, "blocks.*": 0.25, "attn": "break-even"})
    ranks = {name: m.rank for name, m in model.named_modules() if isinstance(m, DecomposedLayer)}
    assert ranks == {
        "attn.in_proj": sk.break_even_rank(48, 16), "attn.out_proj": sk.break_even_rank(16, 16),
        "blocks.0.0": 3, "blocks.0.2": 3, "blocks.1.0": 4, "blocks.1.2": 4,
    }  # fmt: skip


def test_exclude_leaves_layers_as_they_are() -> None:
    model = Mixed()
    sk.decompose_model(model, {"*": 2}, exclude=["blocks.*", "attn"])
    assert decomposed_names(model) == ["conv", "by_name.head"]


def test_a_layer_that_is_the_model_gives_a_new_layer() -> None:
    dense = nn.Linear(6, 5)
    bias = dense.bias
    model = sk.decompose_model(dense, {"*": 2})
    assert isinstance(model, sk.DecomposedLinear)
    assert (model.rank, model.bias) == (2, bias)
    back = sk.recompose_model(model)
    assert type(back) is nn.Linear
    assert back.bias is bias


def test_mode_dtype_and_requires_grad_stay() -> None:
    model = mlp(8, 6, 4).to(torch.bfloat16)
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    model[2].eval()
    biases = model[0].bias, model[2].bias
    sk.decompose_model(model, {"*": 1.0})
    for back in (False, True):
        if back:
            sk.recompose_model(model)
        trains = {name: p.requires_grad for name, p in model.named_parameters()}
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert [model.training, model[0].training, model[2].training] == [True, True, False]
        assert (model[0].bias, model[2].bias) == biases
        weights = ["weight"] if back else ["U", "Sigma", "Vh"]
        assert {name for name, on in trains.items() if not on} == {
            "2.bias", *(f"0.{weight}" for weight in weights)
        }  # fmt: skip


def test_a_module_under_two_names_is_replaced_once() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh())
    model.append(model[0])
    wrapped = nn.ModuleDict({"first": model, "again": model})
    sk.decompose_model(wrapped, {"first.0": 2})
    assert isinstance(model[0], sk.DecomposedLinear)
    assert model[0] is model[2]
    assert wrapped["again"][2] is model[0]
    sk.recompose_model(wrapped, "again.2")
    assert type(model[0]) is nn.Linear
    assert model[0] is model[2]


def test_tied_weights_share_factors_and_weights_again() -> None:
    model, ids = LanguageModel(), torch.arange(30)
    before, y = count(model), model(ids)
    sk.decompose_model(model, {"embed": 1.0, "head": 1.0})
    assert error(model(ids), y) < SAME
    for factor in ("U", "Sigma", "Vh"):
        assert getattr(model.embed, factor) is getattr(model.head, factor)
    assert count(model) == 30 * 12 + 12 * 12 + 12 * 12 + 12 * 12 + 12 + 30
    sk.recompose_model(model)
    assert model.head.weight is model.embed.weight
    assert count(model) == before
    assert error(model(ids), y) < SAME


def test_tied_thin_layers_have_both_weights_once() -> None:
    model, ids = LanguageModel(), torch.arange(30)
    sk.decompose_model(model, {"*": 3})
    y = model(ids)
    sk.recompose_model(model, form="smallest")
    assert error(model(ids), y) < SAME
    assert count(model) == 3 * (30 + 12) + 3 * (12 + 12) + 12 + 30
    # Trained together: one step moves both, as with the shared factors.
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(ids).square().mean().backward()
    optimizer.step()
    assert error(model.embed(ids), model.head.weight) < SAME


def test_two_layers_of_one_kind_share_thin_weights() -> None:
    model = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 3, dilation=2))
    model[1].weight = model[0].weight
    x = torch.randn(2, 4, 9)
    sk.decompose_model(model, {"*": 2})
    y = model(x)
    sk.recompose_model(model, form="smallest")
    assert [p.shape[:2] for n, p in model.named_parameters() if "weight" in n] == [(2, 4), (4, 2)]
    assert error(model(x), y) < SAME


def test_the_padded_row_of_a_tied_embedding_is_zero_whichever_layer_comes_first() -> None:
    embedding = nn.Embedding(9, 6, padding_idx=2)
    model = nn.ModuleList([nn.Linear(6, 9), embedding])
    model[0].weight = embedding.weight
    sk.decompose_model(model, {"*": 1.0})
    assert model[0].U is model[1].U
    assert not model[1](torch.tensor([2])).any()


def test_attentions_may_share_their_weights() -> None:
    model = nn.ModuleList(nn.MultiheadAttention(8, 2) for _ in range(2))
    model[1].in_proj_weight = model[0].in_proj_weight
    model[1].in_proj_bias = model[0].in_proj_bias
    before = count(model)
    sk.decompose_model(model, {"*": 0.5})
    assert model[1].in_proj.U is model[0].in_proj.U
    assert model[1].in_proj.bias is model[0].in_proj.bias
    assert model[1].out_proj.U is not model[0].out_proj.U
    sk.recompose_model(model)
    assert count(model) == before
    assert model[1].in_proj_weight is model[0].in_proj_weight


@pytest.mark.parametrize("rank", [1.0, 0.25])
@pytest.mark.parametrize("form", ["dense", "smallest"])
def test_transformer_encoder_with_and_without_its_fast_path(rank: float, form: Any) -> None:
    """In evaluation the encoder layer reads weights past ``forward``: see plain forms too."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    sk.decompose_model(model, {"*": rank})
    x = torch.randn(2, 5, 16)
    y = model(x)
    for mode in (True, False):
        with torch.no_grad():
            assert error(model.train(mode)(x), y) < SAME
    sk.recompose_model(model, form=form)
    for mode in (True, False):
        with torch.no_grad():
            assert error(model.train(mode)(x), y) < SAME


def test_thin_cross_attention() -> None:
    model = nn.MultiheadAttention(16, 4)
    decomposed = sk.decompose_model(model, {"*": 3})
    q, k, v = torch.randn(2, 16), torch.randn(5, 16), torch.randn(5, 16)
    expected = decomposed(q, k, v)[0], decomposed(q, k, k)[0]
    thin = sk.recompose_model(decomposed, form="smallest")
    assert type(thin.in_proj).__name__ == "ThinLayers"
    assert error(thin(q, k, v)[0], expected[0]) < SAME
    assert error(thin(q, k, k)[0], expected[1]) < SAME


def test_thin_layers_say_the_weight_they_stand_for() -> None:
    model = nn.ModuleList(
        [nn.Linear(9, 8), nn.Embedding(9, 8), nn.Conv2d(8, 12, (2, 3), groups=2, bias=False)]
    )
    sk.decompose_model(model, {"*": 2})
    weights = [layer.weight.detach() for layer in model]
    biases = [getattr(layer, "bias", None) for layer in model]
    sk.recompose_model(model, form="smallest")
    assert {type(layer).__name__ for layer in model} == {"ThinLayers"}
    for layer, weight, bias in zip(model, weights, biases, strict=True):
        assert layer.weight.shape == weight.shape
        assert error(layer.weight, weight) < SAME
        assert layer.bias is bias


def test_recompose_takes_patterns() -> None:
    model = Mixed()
    sk.decompose_model(model, {"*": 2})
    sk.recompose_model(model, ["blocks.1.*", "attn"])
    assert decomposed_names(model) == ["conv", "blocks.0.0", "blocks.0.2", "by_name.head"]
    sk.recompose_model(model)
    assert decomposed_names(model) == []
    assert sk.recompose_model(model) is model


class _Subclass(nn.Linear):
    """Another initialisation alone: its forward is that of ``nn.Linear``."""


class _OwnForward(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


def test_a_subclass_with_the_same_forward_is_decomposed() -> None:
    model = nn.Sequential(_Subclass(4, 4))
    assert decomposed_names(sk.decompose_model(model, {"0": 2})) == ["0"]


def _with_hook() -> nn.Module:
    model = mlp(4, 4, 4)
    model[0].register_forward_hook(lambda *_: None)
    return model


def _with_parameter_hook() -> nn.Module:
    model = mlp(4, 4, 4)
    model[0].weight.register_hook(lambda gradient: gradient)
    return model


def _compiled_layer() -> nn.Module:
    model = mlp(4, 4, 4)
    model[0].compile()
    return model


def _with_buffer() -> nn.Module:
    model = mlp(4, 4, 4)
    model[0].register_buffer("scale", torch.ones(4))
    return model


def _with_nan() -> nn.Module:
    model = mlp(4, 4, 4)
    model[2].weight.data[1, 1] = torch.nan
    return model


def _tied_to_parameter() -> nn.Module:
    model = mlp(4, 4, 4)
    model.register_parameter("also", model[0].weight)
    return model


def _tied_groups() -> nn.Module:
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Conv1d(4, 4, 3, groups=2))
    model[1].weight = model[0].weight
    return model


REFUSED: list[tuple[Callable[[], nn.Module], dict[str, Any], str]] = [
    (Mixed, {"blocks.0.7": 2}, r"'blocks.0.7' fits no module; near names: .*blocks.0.0"),
    (Mixed, {"norm": 2}, r"norm is a LayerNorm, which has no decomposed form"),
    (Mixed, {"blocks.0": 2}, r"blocks.0 is a Sequential.* as blocks.0.0, write 'blocks.0.\*'"),
    (Mixed, {"attn.out_proj": 2}, r"attn.out_proj is a part of the attention attn"),
    (Mixed, {"*": 2, "conv": 3}, r"'conv' is never used, because '\*' stands before it"),
    (Mixed, {}, "ranks is empty"),
    (Mixed, {"*": 17}, r"conv: rank is 17; expected 1 <= rank <= min\(m, n\) = 12"),
    (Mixed, {"*": 0.0}, "conv: rank is 0.0; expected a share"),
    (LanguageModel, {"embed": 2}, "embed.weight and head.weight are one parameter"),
    (LanguageModel, {"head": 2}, "head.weight and embed.weight are one parameter"),
    (LanguageModel, {"embed": 2, "head": 3}, r"embed and head have one weight.*rank 2.*rank 3"),
    (_tied_to_parameter, {"0": 2}, "0.weight and also are one parameter"),
    (_tied_groups, {"*": 2}, "0 and 1 have one weight"),
    (_with_hook, {"*": 2}, "0: the layer.* has hooks"),
    (_with_parameter_hook, {"*": 2}, "0: weight of the layer has hooks"),
    (_compiled_layer, {"*": 2}, "0: the layer is compiled"),
    (_with_buffer, {"*": 2}, "0: the layer has scale beside what an nn.Linear has"),
    (_with_nan, {"*": 2}, "2: .*NaN"),
    (lambda: nn.Sequential(nn.LazyLinear(3)), {"*": 2}, "0: weight of the layer.*no values yet"),
    (lambda: nn.Sequential(nn.Linear(3, 3, device="meta")), {"*": 2}, "0: weight.*meta device"),
    (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3))),
        {"*": 2},
        "0: the layer.*has parametrizations",
    ),
    (lambda: nn.Sequential(spectral_norm_by_hooks(nn.Linear(3, 3))), {"*": 2}, "0: .*has hooks"),
    (lambda: prune.identity(nn.Linear(3, 3), "weight"), {"*": 2}, r"\(Linear\): .*has hooks"),
    (
        lambda: nn.Sequential(torch.ao.nn.quantized.dynamic.Linear(3, 3)),
        {"0": 2},
        r"0 is a torch.ao.nn.quantized.dynamic\S*.Linear, which has no decomposed form",
    ),
    (lambda: nn.DataParallel(mlp(3, 3)), {"*": 2}, "wrapped in DataParallel"),
    (lambda: torch.compile(mlp(3, 3)), {"*": 2}, "wrapped in OptimizedModule"),
    (lambda: nn.Sequential(torch.jit.script(nn.Linear(3, 3))), {"*": 2}, "wrapped in ScriptModule"),
    (lambda: nn.Sequential(nn.Embedding(4, 3, max_norm=1.0)), {"*": 2}, "0: .*max_norm"),
    (lambda: sk.decompose_model(mlp(3, 3, 3), {"*": 2}), {"0": 1}, "0 is decomposed already"),
]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
@pytest.mark.parametrize(("make", "ranks", "message"), REFUSED)
def test_refusals_say_why_and_change_nothing(
    make: Callable[[], nn.Module], ranks: dict[str, Any], message: str
) -> None:
    model = make()
    before, parameters = types(model), dict(model.named_parameters(remove_duplicate=False))
    with pytest.raises(ValueError, match=message):
        sk.decompose_model(model, ranks)
    assert types(model) == before
    after = dict(model.named_parameters(remove_duplicate=False))
    assert list(after) == list(parameters)
    assert all(after[name] is parameter for name, parameter in parameters.items())


def test_wrong_types_are_told() -> None:
    with pytest.raises(TypeError, match=r"0: .*_OwnForward, which has a forward of its own"):
        sk.decompose_model(nn.Sequential(_OwnForward(3, 3)), {"*": 2})
    with pytest.raises(TypeError, match=r"0: rank is \[2\]"):
        sk.decompose_model(mlp(3, 3), {"*": [2]})
    with pytest.raises(TypeError, match="ranks is a list"):
        sk.decompose_model(mlp(3, 3), ["*"])
    with pytest.raises(TypeError, match="model is a dict"):
        sk.decompose_model({}, {"*": 2})
    with pytest.raises(ValueError, match="exclude: the pattern 'hea' fits no module; near names"):
        sk.decompose_model(LanguageModel(), {"*": 2}, exclude="hea")


def test_recompose_refuses_what_it_cannot_keep() -> None:
    model = sk.decompose_model(LanguageModel(), {"*": 2})
    with pytest.raises(ValueError, match=r"head.U and embed.U are one parameter"):
        sk.recompose_model(model, "head")
    with pytest.raises(ValueError, match="form is 'thin'; expected 'dense' or 'smallest'"):
        sk.recompose_model(model, form="thin")
    with pytest.raises(ValueError, match="'zzz' fits no module; layers: embed, hidden, head"):
        sk.recompose_model(model, "zzz")
    model.head.Vh = nn.Parameter(model.head.Vh.detach().clone())
    with pytest.raises(ValueError, match="embed and head share some of their factors, but not all"):
        sk.recompose_model(model)
    plain = sk.decompose_model(mlp(4, 4, 4), {"*": 2})
    plain[2].register_forward_pre_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"2: the layer, a .*, has hooks"):
        sk.recompose_model(plain)
    assert decomposed_names(plain) == ["0", "2"]


def test_no_random_number_is_drawn() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    model = Mixed()
    torch.manual_seed(3)
    sk.recompose_model(sk.decompose_model(copy.deepcopy(model), {"*": 2}), form="smallest")
    sk.recompose_model(sk.decompose_model(model, {"*": 2}))
    assert torch.equal(torch.rand(3), expected)
