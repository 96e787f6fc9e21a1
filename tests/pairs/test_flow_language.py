"""The notation of flows, and what a flow makes of a model."""

from __future__ import annotations

import pytest
import torch
from spectral_monitor.model.config import HeadCounts
from spectral_monitor.model.fused_layouts import rows_by_head
from spectral_monitor.model.layer_tree import build_tree
from spectral_monitor.model.parameters import modules_of, parameters_of
from spectral_monitor.model.registry import find_matrices
from spectral_monitor.model.rules import default_registry
from spectral_monitor.pairs.flow.binding import Binder
from spectral_monitor.pairs.flow.language import Flow, parse
from spectral_monitor.pairs.flow.presets import FAMILIES
from spectral_monitor.pairs.flow.steps import Record, Stream
from torch import nn

from tests.support.named_models import Named, linear


def keys(flow: str, model: nn.Module) -> list[tuple[str, str]]:
    modules = modules_of(model)
    counts = HeadCounts(2, modules, [])
    parameters = parameters_of(model, counts.queries)
    matrices, skipped = find_matrices(parameters, default_registry())
    tree = build_tree([info.name for info, _ in parameters], modules, matrices, skipped)
    record = Record()
    step = Binder(counts).bind(parse(flow), tree, at_top=True)
    assert step is not None
    step.run(record, Stream())
    return [(a.removesuffix(".weight"), b.removesuffix(".weight")) for a, b in record.pairs]


def test_side_by_side_binds_more_than_one_after_the_other() -> None:
    assert parse("#a & #b > c") == Flow(
        ">", parts=(Flow("&", parts=(Flow("#", "a"), Flow("#", "b"))), Flow("", "c"))
    )
    attention = Flow("{", "a.b", options=(("q", "x"), ("cross", "yes")))
    assert parse("h*(a.b{q=x cross=yes})") == Flow("*", "h", (attention,))
    rows = Flow("/", "a", rows=("x", "y"))
    assert parse("e=(a/x,y > b)") == Flow("=", "e", (Flow(">", parts=(rows, Flow("", "b"))),))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a >", "expected a path, got '' after 'a >'"),
        ("a & > b", "expected a path, got '>'"),
        ("a(b", r"expected '\)'"),
        ("a{q}", "expected '='"),
        ("a b", "expected the end, got 'b'"),
        ("a?(b)", "expected ':'"),
    ],
)
def test_what_is_no_flow_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(text)


def test_every_preset_parses() -> None:
    for family in FAMILIES:
        parse(family.flow)


def test_branches_read_the_same_and_both_feed_what_follows() -> None:
    model = Named(a=linear(4, 3), b=linear(4, 4), c=linear(4, 4), d=linear(2, 4))
    assert keys("a > b & c > d", model) == [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]
    # As it is, and scaled.
    assert keys("a > (. & (b > c)) > d", model) == [("a", "b"), ("b", "c"), ("a", "d"), ("c", "d")]


def test_what_is_absent_is_as_if_it_were_not_written() -> None:
    model = Named(a=linear(4, 3), d=linear(2, 4))
    assert keys("a > nothing > x & y > d", model) == [("a", "d")]


def test_a_router_reads_and_writes_nothing() -> None:
    model = Named(a=linear(4, 3), gate=linear(2, 4), b=linear(4, 4), c=linear(2, 4))
    assert keys("a > -gate & b > c", model) == [("a", "gate"), ("a", "b"), ("b", "c")]


def test_rows_that_go_on_apart() -> None:
    model = Named(a=linear(8, 3), b=linear(5, 4), c=linear(2, 4))
    assert keys("a/x,y > b", model) == [("a.weight[x]", "b"), ("a.weight[y]", "b")]
    assert keys("(a/x, > b) & (a/,y > c)", model) == [("a.weight[x]", "b"), ("a.weight[y]", "c")]
    # As many of the first rows as the next reads.
    assert keys("a/first+ > b", model) == [("a.weight[first]", "b")]


def test_what_meets_what() -> None:
    model = Named(a=linear(4, 3), b=linear(4, 5), c=linear(2, 12))
    assert keys("a ~ b", model) == [("a", "b")]
    # Three places side by side; the first stands for all.
    assert keys("a > c%3", model) == [("a", "c.weight[one neighbour]")]


def test_lists_of_layers_and_of_experts() -> None:
    layers = nn.ModuleList(Named(f=linear(4, 4)) for _ in range(3))
    assert keys("layers*(f)", Named(layers=layers)) == [
        ("layers.0.f", "layers.1.f"),
        ("layers.1.f", "layers.2.f"),
    ]
    model = Named(a=linear(4, 3), layers=layers, b=linear(2, 4))
    assert keys("a > layers+(f) > b", model) == [
        *(("a", f"layers.{i}.f") for i in range(3)),
        *((f"layers.{i}.f", "b") for i in range(3)),
    ]


def test_stacked_experts_each_read_their_own() -> None:
    experts = Named(up=nn.Parameter(torch.randn(3, 5, 4)), down=nn.Parameter(torch.randn(3, 4, 5)))
    assert keys("experts=(up > down)", Named(experts=experts)) == [
        (f"experts.up[{i}]", f"experts.down[{i}]") for i in range(3)
    ]


def test_a_flow_is_found_inside_wrappers() -> None:
    model = Named(model=Named(model=Named(a=linear(4, 3), b=linear(2, 4))))
    assert keys("a > b", model) == [("model.model.a", "model.model.b")]


def test_a_choice_by_what_there_is() -> None:
    flow = "a?(a > c : b > c)"
    assert keys(flow, Named(a=linear(4, 3), c=linear(2, 4))) == [("a", "c")]
    assert keys(flow, Named(b=linear(4, 3), c=linear(2, 4))) == [("b", "c")]


def test_rows_of_fused_layouts() -> None:
    roles = rows_by_head("roles", 16, 4, 2)
    assert roles["q"] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert (roles["k"], roles["v"]) == ([(8, 10), (10, 12)], [(12, 14), (14, 16)])
    groups = rows_by_head("groups", 16, 4, 2)
    assert groups["q"] == [(0, 2), (2, 4), (8, 10), (10, 12)]
    assert (groups["k"], groups["v"]) == ([(4, 6), (12, 14)], [(6, 8), (14, 16)])
    quarters = rows_by_head("quarters", 48, 8)
    assert quarters["q"][:3] == [(0, 2), (2, 4), (12, 14)]
    assert quarters["v"][:3] == [(4, 6), (6, 8), (16, 18)]
    assert quarters["k"][:3] == [(8, 10), (10, 12), (20, 22)]


@pytest.mark.parametrize(
    ("layout", "rows", "heads", "kv", "words"),
    [
        ("roles", 10, 4, 2, "10 rows do not divide into 4 query and 2 x 2 other heads"),
        ("groups", 20, 4, 3, "4 query and 3 other heads have no layout 'groups'"),
        ("quarters", 18, 6, 6, "no layout 'quarters'"),
        ("mixed", 12, 4, 4, "expected one of roles, groups, quarters, got 'mixed'"),
    ],
)
def test_rows_that_do_not_fit_a_layout(
    layout: str, rows: int, heads: int, kv: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        rows_by_head(layout, rows, heads, kv)
