"""Which matrices a parameter means: shapes by hand, views, reasons, patterns."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from spectral_monitor.model.fused_layouts import fused_attention_blocks
from spectral_monitor.model.matrix import MatrixView
from spectral_monitor.model.registry import ParameterInfo, Skip
from spectral_monitor.model.rules import default_registry
from spectral_monitor.monitor import SpectralMonitor
from torch import Tensor, nn


def monitor(model: nn.Module | Mapping[str, Tensor], **options: object) -> SpectralMonitor:
    return SpectralMonitor(model, **{"pairs": None, "reference": None, **options})  # type: ignore[arg-type]


def shapes(model: nn.Module | Mapping[str, Tensor], **options: object) -> dict[str, tuple]:
    return {matrix.name: matrix.shape for matrix in monitor(model, **options).matrices}


def reasons(model: nn.Module, **options: object) -> dict[str, str]:
    return {row.name: row.reason for row in monitor(model, **options).skipped}


class Model(nn.Module):
    """One of everything that has no special rule for its neighbours."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)


def test_linear_and_embedding_are_the_parameters_themselves() -> None:
    model = Model(embed=nn.Embedding(11, 4), fc=nn.Linear(4, 7))
    watch = monitor(model)
    assert {m.name: m.shape for m in watch.matrices} == {
        "embed.weight": (11, 4),
        "fc.weight": (7, 4),
    }
    for matrix, parameter in zip(
        watch.matrices, (model.embed.weight, model.fc.weight), strict=True
    ):
        assert matrix.read().data_ptr() == parameter.data_ptr()
        assert torch.equal(matrix.read(), parameter)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv1d(3, 5, 7), {"x.weight": (5, 21)}),
        (nn.Conv2d(3, 5, (2, 3)), {"x.weight": (5, 18)}),
        (nn.Conv3d(2, 4, (1, 2, 3)), {"x.weight": (4, 12)}),
        (nn.Conv2d(4, 6, 3, groups=2), {f"x.weight[group {g}]": (3, 18) for g in (0, 1)}),
        (nn.ConvTranspose1d(3, 5, 4), {"x.weight": (5, 12)}),
        (nn.ConvTranspose2d(3, 5, 2), {"x.weight": (5, 12)}),
        (nn.ConvTranspose3d(3, 5, (1, 2, 2)), {"x.weight": (5, 12)}),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), {f"x.weight[group {g}]": (3, 18) for g in (0, 1)}),
        (nn.LSTM(3, 5), {"x.weight_ih_l0": (20, 3), "x.weight_hh_l0": (20, 5)}),
        (nn.GRU(3, 5), {"x.weight_ih_l0": (15, 3), "x.weight_hh_l0": (15, 5)}),
        (nn.RNNCell(3, 5), {"x.weight_ih": (5, 3), "x.weight_hh": (5, 5)}),
        (
            nn.LSTM(3, 5, proj_size=2),
            {"x.weight_ih_l0": (20, 3), "x.weight_hh_l0": (20, 2), "x.weight_hr_l0": (2, 5)},
        ),
        (
            nn.MultiheadAttention(8, 2),
            {"x.in_proj_weight": (24, 8), "x.out_proj.weight": (8, 8)},
        ),
        (
            nn.MultiheadAttention(8, 2, kdim=6, vdim=4, add_bias_kv=True),
            {
                "x.q_proj_weight": (8, 8),
                "x.k_proj_weight": (8, 6),
                "x.v_proj_weight": (8, 4),
                "x.out_proj.weight": (8, 8),
            },
        ),
        (nn.Bilinear(3, 4, 2), {"x.weight[0]": (3, 4), "x.weight[1]": (3, 4)}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_shapes_by_hand(layer: nn.Module, expected: dict[str, tuple[int, int]]) -> None:
    assert shapes(Model(x=layer)) == expected


def test_a_group_of_a_convolution_is_its_rows_and_a_view() -> None:
    conv = nn.Conv2d(4, 6, 3, groups=2)
    second = monitor(Model(conv=conv)).matrices[1]
    assert second.name == "conv.weight[group 1]"
    assert torch.equal(second.read(), conv.weight[3:6].reshape(3, 18))
    assert second.read().data_ptr() == conv.weight[3].data_ptr()


def test_a_transposed_convolution_maps_inputs_to_outputs() -> None:
    """As a linear map on one pixel, its matrix must send input channel c to weight[c]."""
    conv = nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False)
    pixel = torch.zeros(1, 4, 1, 1)
    pixel[0, 3] = 1.0  # the second channel of the second group
    output = conv(pixel)[0].reshape(6, 9)
    matrix = monitor(Model(conv=conv)).matrices[1].read().reshape(3, 2, 9)
    assert torch.equal(matrix[:, 1], output[3:])


def test_channels_last_kernels_keep_their_column_order() -> None:
    conv = nn.Conv2d(3, 5, 3)
    plain = conv.weight.detach().clone().reshape(5, 27)
    conv.to(memory_format=torch.channels_last)
    assert torch.equal(monitor(Model(conv=conv)).matrices[0].read(), plain)


def test_plain_parameters_are_batches_of_matrices() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W = nn.Parameter(torch.randn(5, 6))
            self.heads = nn.Parameter(torch.randn(2, 3, 4))
            self.nested = nn.Parameter(torch.randn(2, 1, 3, 4))
            self.position = nn.Parameter(torch.randn(1, 7, 4))
            self.token = nn.Parameter(torch.randn(1, 1, 4))

    model = Plain()
    assert shapes(model) == {
        "W": (5, 6),
        "heads[0]": (3, 4),
        "heads[1]": (3, 4),
        "nested[0, 0]": (3, 4),
        "nested[1, 0]": (3, 4),
        "position": (7, 4),
    }
    assert "vector" in reasons(model)["token"]
    assert torch.equal(monitor(model).matrices[2].read(), model.heads[1])


def test_a_mapping_of_tensors_reads_four_dimensions_as_a_kernel() -> None:
    state = {"a.weight": torch.randn(5, 3), "conv.weight": torch.randn(4, 3, 2, 2)}
    assert shapes(state) == {"a.weight": (5, 3), "conv.weight": (4, 12)}


def test_every_skipped_parameter_has_its_reason() -> None:
    model = Model(
        fc=nn.Linear(4, 3),
        norm=nn.LayerNorm((2, 4)),
        depthwise=nn.Conv2d(4, 4, 3, groups=4),
        lazy=nn.LazyLinear(3),
        meta=nn.Linear(4, 3, bias=False, device="meta"),
        empty=nn.Linear(0, 3, bias=False),
        other=nn.Linear(4, 5, bias=False),
    )
    model.integers = nn.Parameter(torch.ones(3, 3, dtype=torch.int64), requires_grad=False)
    model.complex = nn.Parameter(torch.ones(3, 3, dtype=torch.complex64))
    model.eight = nn.Parameter(torch.ones(3, 3).to(torch.float8_e4m3fn), requires_grad=False)
    model.sparse = nn.Parameter(torch.eye(3).to_sparse(), requires_grad=False)
    told = reasons(model, exclude="other*")
    expected = {
        "fc.bias": "1-D",
        "norm.weight": "normalisation",
        "depthwise.weight": "depthwise",
        "lazy.weight": "lazy",
        "meta.weight": "meta device",
        "empty.weight": "empty",
        "other.weight": "excluded by 'other*'",
        "integers": "int64",
        "complex": "complex64",
        "eight": "float8",
        "sparse": "sparse",
    }
    for name, words in expected.items():
        assert words in told[name], name
    text = monitor(model, exclude="other*").explain()
    assert all(name in text for name in (*expected, "fc.weight"))
    # Nothing is in both lists, and nothing in neither.
    names = {name for name, _ in model.named_parameters()}
    assert set(told) | {"fc.weight"} == names


def test_a_model_without_matrices_says_why() -> None:
    with pytest.raises(ValueError, match=r"no matrix to watch.*weight: 1-D"):
        monitor(nn.BatchNorm1d(3))


def test_tied_weights_appear_once_under_both_names() -> None:
    model = Model(embed=nn.Embedding(9, 4), head=nn.Linear(4, 9, bias=False))
    model.head.weight = model.embed.weight
    watch = monitor(model)
    assert [m.name for m in watch.matrices] == ["embed.weight"]
    assert watch.matrices[0].aliases == ("head.weight",)
    assert "tied with head.weight" in watch.explain()
    assert [m.name for m in monitor(model, include=["head.weight"]).matrices] == ["embed.weight"]


def test_include_and_exclude() -> None:
    model = Model(a=nn.Linear(3, 3), b=nn.Linear(3, 3), conv=nn.Conv2d(4, 4, 3, groups=2))
    assert list(shapes(model, include="?.weight")) == ["a.weight", "b.weight"]
    assert list(shapes(model, include=["conv.weight"])) == [
        "conv.weight[group 0]",
        "conv.weight[group 1]",
    ]
    assert list(shapes(model, exclude=["a.*", "conv.weight[group 0]"])) == [
        "b.weight",
        "conv.weight[group 1]",
    ]
    with pytest.raises(ValueError, match=r"include: the pattern 'c.weight'.*a.weight"):
        shapes(model, include=["a.weight", "c.weight"])
    with pytest.raises(ValueError, match=r"exclude: the pattern 'conv.weight\[group 2\]'"):
        shapes(model, exclude="conv.weight[group 2]")


def test_gates_are_matrices_where_include_spells_them_out() -> None:
    lstm = nn.LSTM(3, 5)
    assert list(shapes(Model(lstm=lstm), include="*")) == [
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
    ]
    model = Model(lstm=lstm)
    gates = monitor(model, include="lstm.weight_ih_l0[gate g]").matrices
    assert [(m.name, m.shape) for m in gates] == [("lstm.weight_ih_l0[gate g]", (5, 3))]
    # PyTorch's order of gates is i, f, g, o.
    assert torch.equal(gates[0].read(), lstm.weight_ih_l0[10:15])


def test_fused_attention_blocks_by_hand() -> None:
    labels = [(b.label, b.start, b.stop) for b in fused_attention_blocks(12, 2)]
    assert labels == [
        ("q, head 0", 0, 2),
        ("q, head 1", 2, 4),
        ("k, head 0", 4, 6),
        ("k, head 1", 6, 8),
        ("v, head 0", 8, 10),
        ("v, head 1", 10, 12),
    ]
    grouped = fused_attention_blocks(16, 2, kv_heads=1)
    assert [b.label for b in grouped] == ["q, head 0", "q, head 1", "k, head 0", "v, head 0"]
    mixed = fused_attention_blocks(12, 2, layout="groups")
    assert [b.label[:1] for b in mixed] == list("qkvqkv")
    with pytest.raises(ValueError, match="13 rows do not divide"):
        fused_attention_blocks(13, 2)


def test_the_registry_is_overridable_by_type_and_by_name() -> None:
    class InputFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(4, 9))

    def transposed(info: ParameterInfo) -> list[MatrixView]:
        assert info.leaf == "kernel"
        return [MatrixView("linear", lambda t: t.mT)]

    registry = default_registry()
    registry.register(InputFirst, transposed)
    registry.register("*.lora_*", lambda info: Skip("adapter"))
    model = Model(x=InputFirst(), y=nn.Linear(2, 2, bias=False))
    model.y.lora_A = nn.Parameter(torch.randn(2, 2))
    assert shapes(model, registry=registry) == {"x.kernel": (9, 4), "y.weight": (2, 2)}
    assert reasons(model, registry=registry) == {"y.lora_A": "adapter"}
    # The default is untouched.
    assert shapes(Model(x=InputFirst())) == {"x.kernel": (4, 9)}
    with pytest.raises(TypeError, match="module type or a name pattern"):
        registry.register(3, transposed)  # type: ignore[arg-type]


def test_a_rule_that_makes_three_dimensions_is_refused() -> None:
    registry = default_registry()
    registry.register("W", lambda info: [MatrixView("odd", lambda t: t[None])])
    with pytest.raises(ValueError, match=r"W: the rule for \(3, 4\) made \(1, 3, 4\)"):
        monitor({"W": torch.randn(3, 4)}, registry=registry)
