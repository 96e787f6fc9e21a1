"""Run folders: complete after a kill at any moment, and read back as they were written."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.run.reader import load_run
from spectral_monitor.run.recorder import Recorder
from spectral_monitor.step.dataframes import read_metrics
from spectral_monitor.step.frame import SpectralFrame

from spectral_kernels.entry.results import METRICS

WEIGHTS = ((6, 4), (3, 6))


def frames(count: int, *, scale: float = 1.0, **options: object) -> list[SpectralFrame]:
    generator = torch.Generator().manual_seed(0)
    weights = {f"w{i}": scale * torch.randn(shape, generator=generator)
               for i, shape in enumerate(WEIGHTS)}  # fmt: skip
    watch = SpectralMonitor(weights, **{"every": 1, **options})  # type: ignore[arg-type]
    made = []
    for step in range(count):
        frame = watch.step(step, loss=1.0 / (step + 1))
        assert frame is not None
        made.append(frame)
        for name in weights:
            weights[name] = weights[name] * 1.1
    return made


def write(folder: Path, made: list[SpectralFrame], **options: Any) -> None:
    with Recorder(folder, **{"precision": "full", **options}) as recorder:
        for frame in made:
            recorder.write(frame)


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    made = frames(5)
    write(tmp_path / "deep" / "run", made)
    run = load_run(tmp_path / "deep" / "run")
    assert run.steps.tolist() == [0, 1, 2, 3, 4]
    assert run.scalars["loss"].tolist() == [frame.scalars["loss"] for frame in made]
    assert run.matrices == ["w0", "w1"]
    assert list(run.alignment) == [("w0", "w1")]
    for t, frame in enumerate(made):
        for name, row in frame.matrices.items():
            np.testing.assert_array_equal(run.singular_values[name][t], row.singular_values)
            np.testing.assert_array_equal(run.agreement[name][t], frame.agreement[name])
            for metric in METRICS:
                assert run.metrics[metric][name][t] == getattr(row, metric)
        np.testing.assert_array_equal(run.alignment["w0", "w1"][t], frame.alignment["w0", "w1"])
        score = run.metrics["alignment_score"]["w0 -> w1"][t]
        assert score == pytest.approx(frame.alignment["w0", "w1"][:10].mean())


def test_the_metrics_are_one_line_of_pandas_away(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    made = frames(3)
    made[1].scalars["loss"] = math.nan
    made[1].scalars["huge"] = math.inf
    write(tmp_path, made)
    table = pandas.read_json(tmp_path / "metrics.jsonl", lines=True)
    assert table["step"].tolist() == [0, 1, 2]
    assert table["loss"].isna().tolist() == [False, True, False]
    expected = made[2].matrices["w0"].effective_rank
    assert table["effective_rank/w0"][2] == pytest.approx(expected, rel=1e-9)
    # Strict JSON: no NaN or Infinity, which many readers refuse.
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    run = load_run(tmp_path)
    assert np.isnan(run.scalars["loss"][1])
    assert np.isnan(run.scalars["overhead"][0])


@pytest.mark.parametrize("method", ["tracked", "randomized"])
def test_bounds_are_recorded_where_values_are_estimates(method: str, tmp_path: Path) -> None:
    made = frames(2, method=method, k=2)
    write(tmp_path, made)
    run = load_run(tmp_path)
    row = made[1].matrices["w0"]
    for metric in METRICS:
        recorded = run.metrics["bound"][f"{metric}/w0"][1]
        assert recorded == pytest.approx(row.bounds[metric], rel=1e-8)
    np.testing.assert_allclose(
        run.singular_value_bounds["w0"][1], row.singular_value_bounds, rtol=1e-6
    )
    # float64 bounds do not make the values twice as long.
    assert run.singular_values["w0"].dtype == np.float32


def test_the_exact_method_records_no_bounds(tmp_path: Path) -> None:
    write(tmp_path, frames(2, method="exact"))
    run = load_run(tmp_path)
    assert "bound" not in run.metrics
    assert run.singular_value_bounds == {}


def test_float64_stays_float64(tmp_path: Path) -> None:
    A = torch.randn(5, 4, dtype=torch.float64)
    watch = SpectralMonitor(
        {"A": A, "B": torch.randn(4, 5)}, every=1, recorder=Recorder(tmp_path, precision="full")
    )
    frame = watch.step()
    watch.close()
    assert frame is not None
    run = load_run(tmp_path)
    np.testing.assert_array_equal(run.singular_values["A"][0], frame.matrices["A"].singular_values)
    assert run.singular_values["A"].dtype == np.float64


def test_nan_matrices_come_back_as_nan(tmp_path: Path) -> None:
    weights = {"w0": torch.randn(6, 4), "w1": torch.full((3, 6), math.nan)}
    watch = SpectralMonitor(weights, every=1, recorder=Recorder(tmp_path, precision="full"))
    watch.step()
    watch.close()
    run = load_run(tmp_path)
    assert np.isnan(run.singular_values["w1"]).all()
    assert np.isfinite(run.singular_values["w0"]).all()
    assert run.scalars["not_finite"].tolist() == [1.0]


def test_a_torn_end_at_every_byte(tmp_path: Path) -> None:
    """Cut the last records of both files anywhere: earlier frames stay, the folder goes on."""
    made = frames(4)
    source = tmp_path / "source"
    write(source, made[:2])
    sizes = {name: (source / name).stat().st_size for name in ("metrics.jsonl", "spectra.bin")}
    write(source, made[2:3])
    for name, complete in sizes.items():
        full = (source / name).stat().st_size
        # The metrics line is long: its middle tells no more than its ends.
        cuts = [c for c in range(complete, full + 1) if c < complete + 40 or c > full - 40
                or c % 41 == 0]  # fmt: skip
        for cut in cuts:
            folder = tmp_path / "cut"
            shutil.copytree(source, folder)
            os.truncate(folder / name, cut)
            if name == "spectra.bin" and cut < full:
                # The binary record is written first, so a kill in it leaves no line.
                os.truncate(folder / "metrics.jsonl", sizes["metrics.jsonl"])
            left = 3 if cut == full else 2
            assert load_run(folder).steps.tolist() == [0, 1, 2][:left], (name, cut)
            assert len(read_metrics(folder)) == left
            write(folder, made[left:])
            run = load_run(folder)
            assert run.steps.tolist() == [0, 1, 2, 3]
            for t, frame in enumerate(made):
                np.testing.assert_array_equal(
                    run.singular_values["w1"][t], frame.matrices["w1"].singular_values
                )
            shutil.rmtree(folder)


CHILD = """
import sys, torch
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.run.recorder import Recorder
A = torch.randn(64, 48)
weights = {"A": A, "B": torch.randn(32, 64)}
watch = SpectralMonitor(weights, every=1, recorder=Recorder(sys.argv[1]))
step = 0
while True:
    watch.step(step, value=2.0 * step)
    step += 1
"""


def test_sigkill_in_the_middle_of_writing(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], cwd=Path(__file__).parents[2]
    )
    metrics = tmp_path / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 90
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 30:
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        # While it is being written:
        assert len(load_run(tmp_path).steps) >= 30
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    run = load_run(tmp_path)
    count = len(run.steps)
    assert count >= 30
    assert run.steps.tolist() == list(range(count))
    assert run.scalars["value"].tolist() == [2.0 * step for step in range(count)]
    # The weights never moved, so every record must say the same.
    values = np.asarray(run.singular_values["A"])
    assert values.shape == (count, 48)
    np.testing.assert_array_equal(values, np.broadcast_to(values[0], values.shape))
    recorder = Recorder(tmp_path)
    assert recorder.last_step == count - 1
    recorder.close()


def test_resume_drops_later_records(tmp_path: Path) -> None:
    made = frames(6)
    write(tmp_path, made[:5])
    recorder = Recorder(tmp_path, resume_from=2)
    assert recorder.last_step == 2
    made[3].scalars["loss"] = 9.0
    recorder.write(made[3])
    recorder.close()
    run = load_run(tmp_path)
    assert run.steps.tolist() == [0, 1, 2, 3]
    assert run.scalars["loss"][3] == 9.0
    assert len(run.singular_values["w0"]) == 4
    with Recorder(tmp_path, resume_from=-1) as recorder:
        assert recorder.last_step is None
        # Nothing is left, so that other matrices are welcome.
        watch = SpectralMonitor({"other": torch.eye(3)}, every=1, recorder=recorder)
        watch.step(0)
    assert load_run(tmp_path).matrices == ["other"]


def test_steps_only_go_forward(tmp_path: Path) -> None:
    made = frames(3)
    write(tmp_path, made)
    with Recorder(tmp_path) as recorder:
        words = re.escape("records up to step 2, got step 1; pass resume_from=0")
        with pytest.raises(ValueError, match=words):
            recorder.write(made[1])
    with pytest.raises(ValueError, match="is closed"):
        recorder.write(made[2])
    recorder.close()


def test_other_matrices_are_refused(tmp_path: Path) -> None:
    write(tmp_path, frames(2))
    other = SpectralMonitor({"x": torch.eye(3)}, every=1).step(9)
    assert other is not None
    for _ in range(2):
        with Recorder(tmp_path) as recorder, pytest.raises(ValueError, match="other matrices"):
            recorder.write(other)
    assert load_run(tmp_path).steps.tolist() == [0, 1]


def test_foreign_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl: line 1 is not a record"):
        Recorder(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"epoch": 1}\n'
    with pytest.raises(FileNotFoundError):
        load_run(tmp_path / "none")


def test_a_failed_write_leaves_no_half_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = frames(3)
    recorder = Recorder(tmp_path)
    recorder.write(made[0])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    real = recorder._metrics
    assert real is not None

    class Full:
        """Takes ten bytes, then has no space left."""

        taken = False

        def write(self, data: bytes) -> int:
            if self.taken:
                raise OSError(28, "No space left on device")
            self.taken = True
            return real.write(data[:10])

        def fileno(self) -> int:
            return real.fileno()

    recorder._metrics = Full()  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space left"):
        recorder.write(made[1])
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    recorder._metrics = real
    recorder.close()
    write(tmp_path, made[1:])
    assert load_run(tmp_path).steps.tolist() == [0, 1, 2]


def test_an_empty_run(tmp_path: Path) -> None:
    Recorder(tmp_path).close()
    run = load_run(tmp_path)
    assert run.steps.tolist() == []
    assert run.matrices == []


def test_config_and_summary_belong_to_the_run(tmp_path: Path) -> None:
    write(tmp_path, frames(1))
    (tmp_path / "config.json").write_text('{"seed": 3}')
    (tmp_path / "summary.json").write_text('{"claims": []}')
    run = load_run(tmp_path)
    assert run.config == {"seed": 3}
    assert run.summary == {"claims": []}
