"""Rows that differ in their indices alone are one row of `explain`, and no other rows are."""

from __future__ import annotations

import pytest
import torch
from spectral_monitor.model.similar_rows import together
from spectral_monitor.monitor import SpectralMonitor
from torch import nn


def told(*rows: tuple[str, ...]) -> list[tuple[str, ...]]:
    return together(rows, 1, "{count} x ({cell})")


def test_layers_are_a_range() -> None:
    rows = [(f"h.{i}.fc.weight", "4 x 8", f"by chance 0.21; tied with t.{i}") for i in range(42)]
    assert told(*rows) == [
        ("h.{0..41}.fc.weight", "42 x (4 x 8)", "by chance 0.21; tied with t.{0..41}")
    ]


@pytest.mark.parametrize(
    ("layers", "shown"),
    [(range(0, 40, 4), "{0..36 by 4}"), ((0, 1, 5), "{0,1,5}"), (range(3), "{0..2}")],
)
def test_a_range_says_which(layers: range | tuple[int, ...], shown: str) -> None:
    rows = [(f"h.{i}.w", "2 x 2") for i in layers]
    assert told(*rows) == [(f"h.{shown}.w", f"{len(rows)} x (2 x 2)")]


def test_indices_that_move_together_are_those_of_neighbours() -> None:
    rows = [(f"h.{i}.out", f"-> h.{i + 1}.fc") for i in range(5)]
    assert told(*rows) == [("h.{0..4}.out", "5 x (-> h.{1..5}.fc)")]


def test_indices_of_other_steps_move_together_too() -> None:
    """Groups of a convolution, each with its own columns of the next layer."""
    rows = [(f"c[group {i}]", f"-> d[inputs {2 * i}:{2 * i + 2}]") for i in range(6)]
    assert told(*rows) == [("c[group {0..5}]", "6 x (-> d[inputs {0..10 by 2}:{2..12 by 2}])")]
    # Backwards, or not all of them: a reader would put other ones together.
    rows = [(f"c.{i}", f"-> d.{5 - i}") for i in range(6)]
    assert sorted(told(*rows)) == sorted(rows)
    rows = [(f"c.{i}", f"-> d.{i * i}") for i in range(6)]
    assert sorted(told(*rows)) == sorted(rows)


def test_stages_with_other_numbers_of_groups_are_rows_of_their_own() -> None:
    rows = [
        (f"s.{stage}.c[group {i}]", f"-> s.{stage}.d[inputs {2 * i}:{2 * i + 2}]")
        for stage in (1, 2)
        for i in range(4 * stage)
    ]
    assert told(*rows) == [
        ("s.1.c[group {0..3}]", "4 x (-> s.1.d[inputs {0..6 by 2}:{2..8 by 2}])"),
        ("s.2.c[group {0..7}]", "8 x (-> s.2.d[inputs {0..14 by 2}:{2..16 by 2}])"),
    ]


def test_experts_of_layers_are_every_combination() -> None:
    rows = [(f"h.{i}.e.{j}.up", f"-> h.{i + 1}.q") for i in range(5) for j in range(8)]
    assert told(*rows) == [("h.{0..4}.e.{0..7}.up", "40 x (-> h.{1..5}.q)")]


def test_what_ranges_would_say_wrongly_stays_apart() -> None:
    # Neither in step nor every combination: {0..3}.{0..3} would name sixteen.
    rows = [(f"h.{i}.e.{j}", "2 x 2") for i, j in ((0, 1), (1, 3), (2, 0), (3, 2))]
    assert sorted(told(*rows)) == sorted(rows)
    layers = [(f"h.{i}.e.{j}", "2 x 2") for i in (0, 1) for j in range(3 + i)]
    assert told(*layers) == [("h.0.e.{0..2}", "3 x (2 x 2)"), ("h.1.e.{0..3}", "4 x (2 x 2)")]


def test_other_shapes_and_digits_of_names_stay_apart() -> None:
    rows = [("h.0.w", "2 x 2"), ("h.1.w", "2 x 3"), ("h.2.w", "2 x 2")]
    assert sorted(told(*rows)) == sorted(rows)
    rows = [(f"conv{i}.w", "2 x 2") for i in range(5)]
    assert told(*rows) == rows
    rows = [("a.w", "2", f"by chance 0.{i}") for i in range(5)]
    assert told(*rows) == rows


def test_parts_in_brackets_have_indices() -> None:
    rows = [(f"w[q, head {i}]", "2 x 2") for i in range(4)]
    assert told(*rows) == [("w[q, head {0..3}]", "4 x (2 x 2)")]


def test_a_deep_model_is_short_and_full_has_every_row() -> None:
    layers = [nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 6), nn.Linear(6, 4)) for _ in range(42)]
    monitor = SpectralMonitor(nn.Sequential(*layers).to(torch.float32), reference=None)
    short, full = monitor.explain(), monitor.explain(full=True)
    assert len(short.splitlines()) < 30
    assert "  {0..41}.1.weight  42 x (6 x 4)" in short
    assert "{0..40}.2.weight  -> {1..41}.1.weight  41 pairs: " in short
    assert "explain(full=True)" in short
    assert len(full.splitlines()) > 42 * 7
    for i in range(42):
        assert f"  {i}.1.weight" in full
