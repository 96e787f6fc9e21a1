"""The code in the README runs as printed, and its figures are those of the recorded run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import spectral_kernels as sk
from benchmarks.table import markdown

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text()


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_quickstart_records_every_step_in_ten_lines(readme, tmp_path):
    quickstart = python_blocks(readme)[0]
    lines = [line for line in quickstart.splitlines() if line.strip()]
    assert len(lines) <= 10
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{quickstart}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "'0.weight'" in result.stdout
    assert "('0.weight', '2.weight')" in result.stdout

    path = re.search(r'`pandas.read_json\("(.*?)", lines=True\)`', readme)
    assert path is not None, "the README promises a line that reads the metrics"
    table = pandas.read_json(tmp_path / path.group(1), lines=True)
    assert table["step"].tolist() == list(range(50))
    assert np.isfinite(table["effective_rank/0.weight"]).all()


def test_the_functional_examples_run(readme):
    rng = np.random.default_rng(0)
    names = {
        "sk": sk,
        "A": rng.standard_normal((3, 40, 20)),
        "B": rng.standard_normal((8, 8)),
        "C": rng.standard_normal((5, 60)),
        "Vh_next": np.linalg.svd(rng.standard_normal((3, 30, 40)))[2],
    }
    exec(python_blocks(readme)[1], names)
    np.testing.assert_allclose(names["S"], np.linalg.svd(names["A"], compute_uv=False), rtol=1e-10)


def test_the_options_of_the_monitor_are_as_shown(readme):
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    names = {"sk": sk, "model": model}
    exec(python_blocks(readme)[2], names)
    assert names["row"].bounds["effective_rank"] >= 0
    assert set(names["frame"].matrices) >= {"0.weight", "0.weight[update]", "0.weight[gradient]"}
    assert 0 < names["frame"].chance.agreement["0.weight"] < 1


def test_the_picture_of_the_readme_is_there(readme):
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", readme)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).is_file(), picture


def test_the_commands_of_the_readme_exist(readme):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"`make ([a-z]+)`", readme))
    assert {"demo", "test"} <= named
    assert named <= targets


def test_the_table_is_the_recorded_one(readme):
    record = json.loads((ROOT / "benchmarks/results/cpu.json").read_text())
    assert markdown(record).strip() in readme
