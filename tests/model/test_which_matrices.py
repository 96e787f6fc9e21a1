"""What of a model is a matrix: distinct names, scales and biases, packed and sharded layers."""

from __future__ import annotations

import pytest
import torch
from spectral_monitor.model.matrix import MatrixView
from spectral_monitor.model.registry import Skipped
from spectral_monitor.model.rules import default_registry
from spectral_monitor.monitor import SpectralMonitor
from torch import Tensor, nn


def skipped(monitor: SpectralMonitor) -> dict[str, Skipped]:
    return {row.name: row for row in monitor.skipped}


class Holder(nn.Module):
    """Parameters of an unknown module, by name."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))


def test_a_parameter_called_like_a_part_of_another_keeps_a_row_of_its_own() -> None:
    model = Holder(**{"weight": (2, 3, 4), "weight[0]": (5, 6)})
    watch = SpectralMonitor(model, pairs=None)
    assert {m.name: m.shape for m in watch.matrices} == {
        "weight[0]": (3, 4),
        "weight[1]": (3, 4),
        "weight(0)": (5, 6),
    }
    frame = watch.step()
    assert frame is not None
    assert {name: row.shape for name, row in frame.matrices.items()} == {
        "weight[0]": (3, 4),
        "weight[1]": (3, 4),
        "weight(0)": (5, 6),
    }
    own = torch.linalg.svdvals(model.get_parameter("weight[0]").detach())
    assert torch.allclose(
        torch.as_tensor(frame.matrices["weight(0)"].singular_values), own, atol=1e-5
    )
    assert "called so since 'weight[0]' would read as a part of 'weight'" in watch.explain()


def test_a_parameter_called_like_an_update_is_not_lost_beside_it() -> None:
    model = Holder(**{"w": (4, 5), "w[update]": (5, 6), "w[gradient]": (6, 7)})
    watch = SpectralMonitor(model, pairs=None, watch=("weights", "updates", "gradients"))
    frame = watch.step()
    assert frame is not None
    names = ["w", "w(update)", "w(gradient)"]
    kinds = ["", "[update]", "[gradient]"]
    assert sorted(frame.matrices) == sorted(name + kind for name in names for kind in kinds)
    assert frame.matrices["w[update]"].shape == (4, 5)
    assert frame.matrices["w(update)"].shape == (5, 6)


def test_a_bracket_alone_is_no_reason_to_rename() -> None:
    state = {"a[0]": torch.randn(3, 4), "a[1]": torch.randn(3, 4)}
    assert [m.name for m in SpectralMonitor(state, pairs=None).matrices] == ["a[0]", "a[1]"]
    # The round brackets may be taken, too.
    state = {"a": torch.randn(3, 4), "a[0]": torch.randn(3, 4), "a(0)": torch.randn(3, 4)}
    names = [m.name for m in SpectralMonitor(state, pairs=None).matrices]
    assert names == ["a", "a(0)'", "a(0)"]


def test_a_rule_that_gives_two_matrices_one_name_is_refused() -> None:
    registry = default_registry()
    registry.register("w", lambda info: [MatrixView("odd"), MatrixView("odd")])
    with pytest.raises(ValueError, match="several matrices are called 'w'"):
        SpectralMonitor(Holder(w=(3, 4)), registry=registry)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("b_Q", (4, 8), "a bias"),
        ("gate_up_proj_bias", (4, 8), "a bias"),
        ("e_score_correction_bias", (2, 8), "a bias"),
        ("r_w_bias", (4, 8), "a bias"),
        ("weight_scale_inv", (3, 5), "scales"),
        ("scales", (3, 5), "scales"),
        ("layer_scale_1", (3, 5), "scales"),
        ("A_log", (6, 4), "recurrence"),
        ("time_faaaa", (4, 8), "recurrence"),
        ("relative_position_bias_table", (9, 4), "relative positions"),
        ("attention_biases", (4, 9), "relative positions"),
        ("reg_token", (1, 4, 8), "tokens"),
        ("query_tokens", (1, 4, 8), "tokens"),
    ],
)
@pytest.mark.parametrize("as_state", [False, True], ids=["module", "state dict"])
def test_scales_biases_and_tokens_are_no_matrices(
    name: str, shape: tuple[int, ...], words: str, as_state: bool
) -> None:
    model = Holder(**{name: shape, "proj": (4, 6)})
    watch = SpectralMonitor(model.state_dict() if as_state else model)
    assert [m.name for m in watch.matrices] == ["proj"]
    row = skipped(watch)[name]
    assert words in row.reason
    # A chain of layers goes on across what is no layer.
    assert not row.is_layer


def test_a_table_of_relative_positions_is_no_embedding() -> None:
    class T5(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(4, 6, bias=False)
            self.relative_attention_bias = nn.Embedding(32, 4)

    for model in (T5(), T5().state_dict()):
        watch = SpectralMonitor(model)
        assert [m.name for m in watch.matrices] == ["q.weight"]
        assert "relative positions" in skipped(watch)["relative_attention_bias.weight"].reason


def test_buffers_of_a_state_dict_are_told_by_their_names() -> None:
    state = {
        "fc.weight": torch.randn(4, 6),
        "rotary_sin": torch.randn(16, 8),
        "attn_mask": torch.zeros(4, 9, 9),
        "relative_position_index": torch.zeros(9, 9, dtype=torch.int64),
    }
    watch = SpectralMonitor(state)
    assert [m.name for m in watch.matrices] == ["fc.weight"]
    assert all("buffer" in skipped(watch)[name].reason for name in ("rotary_sin", "attn_mask"))
    assert not any(row.is_layer for row in watch.skipped)


def chain(middle: Tensor) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 32), nn.Linear(32, 8))
    weight = nn.Parameter(middle, requires_grad=False)
    model[1].weight = weight
    return model


def zero3_placeholder() -> Tensor:
    weight = nn.Parameter(torch.empty(0))
    weight.ds_shape = torch.Size((32, 16))  # type: ignore[attr-defined]
    return weight


@pytest.mark.parametrize(
    ("middle", "words"),
    [
        (torch.randn(256, 1), "packed or flattened"),
        (torch.randint(0, 255, (256, 1), dtype=torch.uint8), "256 x 1 where the layer is 32 x 16"),
        (torch.empty(0), "placeholder"),
        (torch.empty(0, 16), "placeholder"),
        (torch.randn(512), "flat part"),
        (torch.randn(16, 16), "partitioned"),
        (torch.randn(32, 16, device="meta"), "meta device"),
    ],
    ids=["float storage", "uint8 storage", "empty", "no rows", "flat", "half", "meta"],
)
def test_a_weight_of_another_shape_than_its_layer_is_named_and_not_bridged(
    middle: Tensor, words: str
) -> None:
    watch = SpectralMonitor(chain(middle))
    assert [m.name for m in watch.matrices] == ["0.weight", "2.weight"]
    row = skipped(watch)["1.weight"]
    assert row.is_layer
    assert words in row.reason
    assert watch.pairs == ()


def test_four_bits_in_a_state_dict_are_told_by_their_scales() -> None:
    state = {
        "0.weight": torch.randn(16, 8),
        "1.weight": torch.randn(64, 1),
        "1.weight.absmax": torch.randn(8),
        "1.weight.quant_map": torch.randn(16),
        "2.weight": torch.randn(8, 32),
    }
    watch = SpectralMonitor(state)
    assert [m.name for m in watch.matrices] == ["0.weight", "2.weight"]
    row = skipped(watch)["1.weight"]
    assert row.is_layer
    assert "packed, 4 bits" in row.reason
    assert watch.pairs == ()


def test_a_partition_of_zero3_is_called_so() -> None:
    model = chain(torch.empty(0))
    model[1].weight = zero3_placeholder()
    row = skipped(SpectralMonitor(model))["1.weight"]
    assert "partitioned by ZeRO-3: 32 x 16 in all, (0) here" in row.reason
    assert row.is_layer


def test_other_layers_declare_their_shapes_too() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 2), nn.Embedding(9, 5), nn.Linear(3, 3)
    )
    for layer in list(model)[:3]:
        layer.weight = nn.Parameter(layer.weight.detach().reshape(-1, 1))
    watch = SpectralMonitor(model)
    assert [m.name for m in watch.matrices] == ["3.weight"]
    assert [skipped(watch)[f"{i}.weight"].reason.partition(":")[0] for i in range(3)] == [
        "216 x 1 where the layer is 8 x 3 x 3 x 3",
        "128 x 1 where the layer is 8 x 4 x 2 x 2",
        "45 x 1 where the layer is 9 x 5",
    ]


def test_a_rule_of_the_user_reads_what_the_layer_does_not_declare() -> None:
    registry = default_registry()
    registry.register("1.weight", lambda info: [MatrixView("linear")])
    names = [m.name for m in SpectralMonitor(chain(torch.randn(9, 7)), registry=registry).matrices]
    assert names == ["0.weight", "1.weight", "2.weight"]
