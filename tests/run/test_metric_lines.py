"""Lines of metrics.jsonl: what ``json.dumps`` of the same numbers would say."""

from __future__ import annotations

import json
import math

import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.run.metric_lines import MetricLines
from spectral_monitor.run.sinks import metric_values
from spectral_monitor.step.frame import SpectralFrame

from spectral_kernels.entry.results import METRICS


def measured(weights: dict[str, torch.Tensor], **options: object) -> SpectralFrame:
    pairs = [("a%d", "b")]
    frame = SpectralMonitor(weights, pairs=pairs, **options).step(7, loss=0.1)  # type: ignore[arg-type]
    assert frame is not None
    return frame


def weights() -> dict[str, torch.Tensor]:
    # Names with what JSON escapes and what a format string takes for a place.
    return {"a%d": torch.randn(20, 14), "b": torch.randn(5, 20), 'c"\\{0}': torch.randn(3, 2)}


@pytest.mark.parametrize("method", ["tracked", "exact"])
def test_a_line_has_every_number(method: str) -> None:
    frame = measured(weights(), method=method)
    lines = MetricLines()
    for step in (7, 8):
        frame.step = step
        content = json.loads(lines.line(frame))
        assert content.pop("step") == step
        assert content.pop("loss") == 0.1
        assert content.pop("not_finite") == 0
        assert content.pop("overhead") is None
        assert content.pop("every") == 1
        work = {key: content.pop(key) for key in list(content) if key.startswith("work/")}
        assert work == ({} if method == "exact" else {"work/kept": 3})
        bounds = {key: content.pop(key) for key in list(content) if key.startswith("bound/")}
        expected = metric_values(frame)
        assert content.keys() == expected.keys()
        for key, value in expected.items():
            # Scores are sums in another order, of float32 numbers.
            accuracy = 1e-6 if "score" in key else 0.0
            assert content[key] == pytest.approx(value, rel=accuracy, abs=0.0), key
        if method == "exact":
            assert not bounds
            continue
        assert len(bounds) == 3 * len(METRICS)
        for name, row in frame.matrices.items():
            for metric in METRICS:
                assert bounds[f"bound/{metric}/{name}"] == pytest.approx(row.bounds[metric])


def test_what_is_not_finite_is_null_and_the_next_line_is_not() -> None:
    lines = MetricLines()
    bad = weights()
    good = measured(bad)
    bad["b"][1, 2] = math.nan
    frame = measured(bad)
    content = json.loads(lines.line(frame))
    assert content["not_finite"] == 1
    assert content["stable_rank/b"] is None
    assert content["bound/stable_rank/b"] is None
    assert content["alignment_score/a%d -> b"] is None
    assert content["stable_rank/a%d"] == frame.matrices["a%d"].stable_rank
    again = json.loads(lines.line(good))
    assert again["stable_rank/b"] == good.matrices["b"].stable_rank


def test_other_matrices_make_other_lines() -> None:
    lines = MetricLines()
    lines.line(measured(weights()))
    few = measured({"a%d": torch.eye(3), "b": torch.ones(2, 3)})
    content = json.loads(lines.line(few))
    assert content["numerical_rank/a%d"] == 3
    assert not any("{0}" in key for key in content)
    # Scores of fewer than ten entries are their mean.
    assert content["agreement_score/a%d"] == pytest.approx(1.0)
