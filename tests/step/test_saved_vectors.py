"""References that a run's folder holds: its end, its saved vectors, another run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.run.final_agreement import agreement_with_final, is_stale
from spectral_monitor.run.reader import load_run
from spectral_monitor.run.recorder import Recorder
from spectral_monitor.run.saved_vectors import SavedVectors

import spectral_kernels as sk
from tests.support.changes import follow, moving
from tests.support.monitored import due


def test_agreement_with_the_end(tmp_path: Path, backend: str) -> None:
    steps = moving(6)
    frames = follow(steps, reference="final", recorder=Recorder(tmp_path))
    assert all(frame.agreement == {} for frame in frames)
    assert frames[0].identifiable
    assert load_run(tmp_path).agreement == {}
    assert is_stale(tmp_path)
    run = agreement_with_final(tmp_path)
    assert not is_stale(tmp_path)
    end = {name: sk.svd(x) for name, x in steps[-1].items()}
    # The same from a monitor that knows the end beforehand. float16 in the file: the bound of a
    # cosine is 2^-11 |u| . |u'|, at most 5e-4 for each of the two factors.
    for t, frame in enumerate(follow(steps, reference=end)):
        for name, expected in frame.agreement.items():
            np.testing.assert_allclose(run.agreement[name][t], expected, atol=2e-3)
            np.testing.assert_allclose(
                run.subspace_agreement[name][t], frame.subspace_agreement[name], atol=2e-3
            )
    assert run.agreement["a"].shape == (6, 6)
    np.testing.assert_allclose(run.agreement["b"][-1], 1, atol=2e-3)
    assert run.agreement["b"][0].min() < 0.999
    np.testing.assert_array_equal(load_run(tmp_path).agreement["a"], run.agreement["a"])
    first = agreement_with_final(tmp_path, step=0)
    np.testing.assert_allclose(first.agreement["a"][0], 1, atol=2e-3)
    with pytest.raises(ValueError, match="no vectors of step 17; there are 6 steps from 0 to 5"):
        agreement_with_final(tmp_path, step=17)


def test_saved_vectors_in_float32_are_exact(tmp_path: Path) -> None:
    steps = moving(2)
    follow(steps, reference="final", recorder=Recorder(tmp_path, vectors="float32"), k=3)
    saved = SavedVectors(tmp_path)
    assert saved.steps.tolist() == [0, 1]
    for i, state in enumerate(steps):
        for name, svd in saved.read(i).items():
            U, _, Vh = sk.svd(state[name])
            assert torch.equal(svd.U, U[:, :3])
            assert torch.equal(svd.Vh, Vh[:3])
    with pytest.raises(ValueError, match="vectors: expected one of float16, float32, got 'int8'"):
        Recorder(tmp_path, vectors="int8")


def test_saved_vectors_survive_kills_and_resumption(tmp_path: Path) -> None:
    steps = moving(5)
    source = tmp_path / "vectors.bin"
    follow(steps[:3], reference="final", recorder=Recorder(tmp_path))
    size = source.stat().st_size // 3
    # Killed inside the fourth record, and after it but before the metrics.
    for extra in (b"\1" * 11, (3).to_bytes(8, "little") + bytes(size - 8)):
        with open(source, "ab") as file:
            file.write(extra)
        Recorder(tmp_path).close()
        assert SavedVectors(tmp_path).steps.tolist() == [0, 1, 2]
    recorder = Recorder(tmp_path, resume_from=1)
    assert SavedVectors(tmp_path).steps.tolist() == [0, 1]
    weights = dict(steps[2])
    watch = SpectralMonitor(weights, every=1, method="exact", reference="final", recorder=recorder)
    for number in (2, 3, 4):
        weights.update(steps[number])
        watch.step(number)
    watch.close()
    whole = tmp_path / "whole"
    follow(steps, reference="final", recorder=Recorder(whole))
    assert source.read_bytes() == (whole / "vectors.bin").read_bytes()
    # A run that goes on does not show the agreement with what was its end before.
    agreement_with_final(tmp_path)
    recorder = Recorder(tmp_path)
    watch = SpectralMonitor(weights, every=1, method="exact", reference="final", recorder=recorder)
    watch.step(5)
    watch.close()
    assert load_run(tmp_path).agreement == {}
    assert is_stale(tmp_path)
    agreement_with_final(tmp_path)
    with Recorder(tmp_path, resume_from=-1):
        assert not source.exists()
        assert not (tmp_path / "final_agreement.npz").exists()
        assert not is_stale(tmp_path)


def test_other_vectors_in_one_folder_are_refused(tmp_path: Path) -> None:
    follow(moving(2), reference="final", recorder=Recorder(tmp_path))
    other = SpectralMonitor(
        {"a": torch.randn(9, 6)}, every=1, reference="final", recorder=Recorder(tmp_path)
    )
    with pytest.raises(ValueError, match="other matrices"):
        other.step(9)
    assert SavedVectors(tmp_path).steps.tolist() == [0, 1]
    with pytest.raises(FileNotFoundError, match=r"no vectors\.bin; a run keeps its vectors where"):
        agreement_with_final(tmp_path / "none")


def test_another_run_as_reference(tmp_path: Path) -> None:
    steps = moving(3)
    recorder = Recorder(tmp_path, vectors="float32")
    follow(steps, reference="final", recorder=recorder)
    end = {name: sk.svd(x) for name, x in steps[-1].items()}
    for reference in (tmp_path, str(tmp_path)):
        frames, expected = (follow(moving(2, seed=1), reference=r) for r in (reference, end))
        for frame, other in zip(frames, expected, strict=True):
            for name in ("a", "b"):
                np.testing.assert_array_equal(frame.agreement[name], other.agreement[name])
    watch = SpectralMonitor({"a": steps[0]["a"]}, every=1, reference=tmp_path)
    assert list(due(watch.step()).agreement) == ["a"]
    assert f"step 2 of {tmp_path.as_posix()}, 1 matrices" in watch.explain()
    with pytest.raises(ValueError, match="matrices a, b; expected some of x"):
        SpectralMonitor({"x": torch.eye(3)}, every=1, reference=tmp_path)
    with pytest.raises(ValueError, match=r"U \(9, 6\).*the matrix is \(3, 3\)"):
        SpectralMonitor({"a": torch.eye(3)}, every=1, reference=tmp_path)
