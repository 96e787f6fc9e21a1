"""Runs recorded in 16 bits and not at every frame: what comes back is within its bounds."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.run import recorder as recorder_file
from spectral_monitor.run.final_agreement import agreement_with_final
from spectral_monitor.run.half_precision import HalfPrecision, decode, rounding_error
from spectral_monitor.run.reader import load_run
from spectral_monitor.run.recorder import Recorder
from spectral_monitor.step.frame import SpectralFrame

from spectral_kernels.entry.results import METRICS


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_come_back_within_their_rounding(dtype: Any) -> None:
    generator = np.random.default_rng(0)
    for scale in (1e-30, 1.0, 3e7, 1e30):
        x = scale * np.concatenate([10.0 ** generator.uniform(-12, 0, 400), [0.0, 1.0]])
        x = x.astype(dtype).astype(np.float64)
        bounds = x * 10.0 ** generator.uniform(-9, -2, len(x))
        columns = HalfPrecision([len(x), 0, len(x)], {0: 2}, [2], dtype)
        scales, codes = columns.encode(np.concatenate([x, bounds]))
        values = decode(codes[None, : len(x)], scales[:1], dtype)[0].astype(np.float64)
        told = decode(codes[None, len(x) :], scales[2:], dtype)[0].astype(np.float64)
        error = np.abs(values - x)
        assert (error <= rounding_error(codes[: len(x)], float(scales[0]))).all()
        # The promise of the file: small numbers to a small share of the largest, and of themselves.
        assert (error <= scale * (1.6e-5 * np.sqrt(x / scale) + 6e-11)).all()
        # Bounds hold of what is recorded, as they did of what was computed.
        assert (told >= bounds + error).all()
        assert (told <= 1.01 * bounds + 3 * rounding_error(codes[: len(x)], float(scales[0]))
                + scale * 1e-4).all()  # fmt: skip
        assert values[-2] == 0.0


def test_what_is_not_a_finite_number_stays_that() -> None:
    x = np.array([math.nan, 1.0, math.inf, 0.5, math.nan])
    scales, codes = HalfPrecision([4, 1], {}, [], np.float32).encode(x)
    first = decode(codes[None, :4], scales[:1], np.float32)[0]
    np.testing.assert_allclose(first, x[:4], rtol=2e-5)
    assert np.isnan(decode(codes[None, 4:], scales[1:], np.float32)).all()


def recorded(
    folder: Path,
    count: int,
    *,
    side: int = 24,
    record: dict[str, Any] | None = None,
    **options: Any,
) -> list[SpectralFrame]:
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(side, side + 8 * i, generator=generator)
               for i, name in enumerate("ab")}  # fmt: skip
    frames = []
    with Recorder(folder, **(record or {})) as recorder:
        watch = SpectralMonitor(weights, every=1, recorder=recorder, pairs=None, **options)
        for step in range(count):
            for x in weights.values():
                x.add_(1e-3 * torch.randn(x.shape, generator=generator))
            frame = watch.step(step, loss=1.0 / (step + 1))
            assert frame is not None
            frames.append(frame)
    return frames


@pytest.mark.parametrize("method", ["tracked", "exact", "randomized"])
def test_recorded_bounds_hold_of_the_recorded_values(method: str, tmp_path: Path) -> None:
    """Values, against those that were computed with their bounds: the truth is in both."""
    frames = recorded(tmp_path, 5, method=method)
    run = load_run(tmp_path)
    assert run.steps.tolist() == list(range(5))
    for t, frame in enumerate(frames):
        for name, row in frame.matrices.items():
            values, bounds = run.singular_values[name][t], run.value_bounds(name)[t]
            assert values.dtype == np.float32
            moved = np.abs(values.astype(np.float64) - row.singular_values)
            assert (moved + row.singular_value_bounds <= bounds * (1 + 1e-6)).all()
            assert moved.max() <= 1.6e-5 * row.singular_values[0]
            assert moved.max() > 0
            np.testing.assert_allclose(run.agreement[name][t], frame.agreement[name], atol=2e-5)
            np.testing.assert_array_equal(run.identifiable[name][t], frame.identifiable[name])
            for metric in METRICS:
                value = run.metrics[metric][name][t]
                assert value == pytest.approx(getattr(row, metric), rel=1e-7)
                if method != "exact":
                    bound = run.metrics["bound"][f"{metric}/{name}"][t]
                    off = abs(value - getattr(row, metric))
                    assert off + row.bounds[metric] <= bound <= 1.02 * row.bounds[metric] + 1e-5


def test_a_frame_of_two_numbers_a_byte(tmp_path: Path) -> None:
    size = {}
    for precision in ("half", "full"):
        recorded(tmp_path / precision, 3, record={"precision": precision}, side=64)
        size[precision] = (tmp_path / precision / "spectra.bin").stat().st_size
    assert size["half"] < 0.52 * size["full"]
    with pytest.raises(ValueError, match="precision: expected 'half' or 'full', got 'low'"):
        Recorder(tmp_path, precision="low")  # type: ignore[arg-type]
    for wrong in ({"keep_every": 0}, {"leading": 1.5}):
        with pytest.raises(ValueError, match="expected a whole number of at least 1 or None"):
            Recorder(tmp_path, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("cut", [0, 3, 4, 7])
def test_frames_between_have_the_scalars(cut: int, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frames = recorded(tmp_path, 8, record={"keep_every": 3})
    table = pandas.read_json(tmp_path / "metrics.jsonl", lines=True)
    assert table["step"].tolist() == list(range(8))
    assert table["loss"].tolist() == pytest.approx([frame.scalars["loss"] for frame in frames])
    assert table["effective_rank/a"].notna().tolist() == [t % 3 == 0 for t in range(8)]
    run = load_run(tmp_path)
    assert run.steps.tolist() == [0, 3, 6]
    assert run.scalars["loss"].tolist() == [frames[t].scalars["loss"] for t in (0, 3, 6)]
    assert run.singular_values["a"].shape == (3, 24)
    # Resumed anywhere, a run keeps the same frames.
    with Recorder(tmp_path, keep_every=3, resume_from=cut) as recorder:
        for frame in frames[cut + 1 :]:
            recorder.write(frame)
    again = load_run(tmp_path)
    assert again.steps.tolist() == [0, 3, 6]
    for name in "ab":
        np.testing.assert_array_equal(again.singular_values[name], run.singular_values[name])


def test_what_would_fill_a_disk_is_not_kept_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorded(tmp_path / "small", 3)
    assert load_run(tmp_path / "small").steps.tolist() == [0, 1, 2]
    frame = sum(path.stat().st_size for path in (tmp_path / "small").glob("*.[jb]*")
                if path.name != "spectra.json") / 3  # fmt: skip
    # As if this were a large model: two and a half times what a frame may take.
    monkeypatch.setattr(recorder_file, "_BYTES_PER_FRAME", frame / 2.5)
    with pytest.warns(UserWarning, match=r"ten thousand would take .* MB: every 3th is kept whole"):
        recorded(tmp_path / "large", 7)
    assert load_run(tmp_path / "large").steps.tolist() == [0, 3, 6]
    # Who goes on keeps to it, without asking again.
    monkeypatch.undo()
    with Recorder(tmp_path / "large") as recorder:
        assert recorder.keep_every == 3
        assert json.loads((tmp_path / "large" / "spectra.json").read_text())["keep_every"] == 3


def test_leading_entries(tmp_path: Path) -> None:
    frames = recorded(tmp_path, 3, record={"leading": 5}, reference="final")
    run = load_run(tmp_path)
    np.testing.assert_allclose(
        run.singular_values["b"][2], frames[2].matrices["b"].singular_values[:5], rtol=4e-5
    )
    assert run.identifiable["b"].shape == (3, 5)
    # What comes after the fifth value is not recorded, so that it cannot be told apart from it.
    done = agreement_with_final(tmp_path)
    assert done.agreement["b"].shape[0] == 3
    assert not done.identifiable["b"][:, -1].any()


def test_the_size_is_told_in_advance(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {f"layers.{i}.mlp.weight": torch.randn(64, 64, generator=generator)
               for i in range(40)}  # fmt: skip
    pairs = [(f"layers.{i}.mlp.weight", f"layers.{i + 1}.mlp.weight") for i in range(39)]
    with Recorder(tmp_path) as recorder:
        watch = SpectralMonitor(weights, every=1, pairs=pairs, recorder=recorder)
        (told,) = (x for x in watch.explain().splitlines() if x.startswith("recorded in"))
        watch.step()
    size = sum((tmp_path / name).stat().st_size for name in ("metrics.jsonl", "spectra.bin"))
    words = told.split("about ")[1].split()
    assert words[1] == "kB"
    assert float(words[0]) == pytest.approx(size / 1e3, rel=0.25)
    assert "for every frame, " in told
