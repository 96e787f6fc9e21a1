"""The report is one file, asks the network for nothing and escapes what it is given."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from spectral_monitor.figures.report import write_report
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.run.reader import load_run
from spectral_monitor.run.recorder import Recorder

EVIL = "<img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Every attribute that could load something, the text of cells, and the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.policy = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside = tag
        values = {key: value or "" for key, value in attrs}
        self.links += [values[key] for key in ("src", "href", "data", "srcset") if key in values]
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"]
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("td", "th"):
            self.cells[-1] += data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "demo" / "seed0"
    weights = {"a": torch.randn(6, 4), EVIL: torch.randn(3, 6)}
    with Recorder(folder) as recorder:
        watch = SpectralMonitor(weights, every=1, method="exact", recorder=recorder)
        for step in range(3):
            watch.step(step, train_loss=1.0 / (step + 1), **{EVIL: 1.0})
            weights["a"] = weights["a"] * 2
    claims = [
        {"claim": EVIL, "source": "RM, Fig. 2", "expected": "falls", "measured": 0.123456,
         "holds": True},
        {"claim": "second", "source": "SD", "expected": None, "measured": {"a": 1}, "holds": False},
        {"claim": "third", "source": "SD", "expected": [1, 2.0], "measured": None, "holds": None},
    ]  # fmt: skip
    (folder / "summary.json").write_text(
        json.dumps(
            {"claims": claims, "steps": 3, "note": EVIL, "table": {"start": {"a": 0.987654}}}
        )
    )
    (folder / "config.json").write_text(json.dumps({"seed": 7, "name": f"</pre>{EVIL}"}))
    return folder


def test_everything_is_in_one_file(folder: Path) -> None:
    path = write_report(folder)
    assert path == folder / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.policy.startswith("default-src 'none'")
    images = [link for link in page.links if link.startswith("data:image/png;base64,")]
    # Figure 2, scores beside chance, agreement of every matrix, clusters.
    assert len(images) == 4
    for image in images:
        assert base64.b64decode(image.partition(",")[2]).startswith(b"\x89PNG\r\n")
    assert set(page.links) == set(images)
    assert "link" not in page.tags
    assert "iframe" not in page.tags
    # The charts' script is in the file, and there are five charts with data.
    assert "plotly.js v" in text
    assert text.count("Plotly.newPlot(") >= 5


def test_what_it_says(folder: Path) -> None:
    cells = Page(write_report(folder, title="A title").read_text(encoding="utf-8")).cells
    run = load_run(folder)
    for expected in ("0.1235", "yes", "no", "not tested", "a: 1", "1, 2", "–"):
        assert expected in cells, expected
    norms = run.metrics["frobenius_norm"]["a"]
    assert norms[2] == pytest.approx(4 * norms[0])
    assert f"{norms[0]:.3g} → {norms[2]:.3g}" in cells
    assert "a" in cells
    # Tables stay in their file, and what the monitor reports at every step is no picture.
    assert not any("0.9877" in cell for cell in cells)


def test_the_monitor_itself_is_drawn_where_it_has_something_to_say(
    folder: Path, tmp_path: Path
) -> None:
    quiet = write_report(folder).read_text(encoding="utf-8")
    assert "What the monitor takes" in quiet
    assert "How often it measures" not in quiet
    assert "Matrices without numbers" not in quiet
    run = load_run(folder)
    run.scalars["every"] = np.arange(1.0, len(run.steps) + 1)
    run.scalars["not_finite"] = np.ones(len(run.steps))
    text = write_report(run, tmp_path / "loud.html").read_text(encoding="utf-8")
    assert "How often it measures" in text
    assert "Matrices without numbers" in text


def test_names_are_text_and_never_markup(folder: Path) -> None:
    page = write_report(folder, title=EVIL).read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "</pre><img" not in page
    parsed = Page(page)
    assert "x" not in parsed.links
    assert EVIL in parsed.cells  # as text


def test_other_runs_are_compared(folder: Path, tmp_path: Path) -> None:
    path = write_report(
        load_run(folder), tmp_path / "both.html", others={"again": load_run(folder)}
    )
    assert path == tmp_path / "both.html"
    text = path.read_text(encoding="utf-8")
    assert "several runs" in text
    assert len([link for link in Page(text).links if link.startswith("data:")]) == 5


def test_a_bare_run_has_a_report_too(tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder:
        watch = SpectralMonitor({"a": torch.randn(3, 3)}, every=1, pairs=None, reference=None,
                                recorder=recorder)  # fmt: skip
        watch.step()
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<h2>Claims" not in text
    assert "<h2>Configuration" not in text
    assert "<h2>Matrices" in text


def test_bounds_and_chance_are_drawn(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator)
               for name, shape in (("a", (40, 30)), ("b", (20, 40)))}  # fmt: skip
    with Recorder(tmp_path) as recorder:
        watch = SpectralMonitor(weights, every=1, method="randomized", k=5,
                                watch=("weights", "updates"), recorder=recorder)  # fmt: skip
        for _ in range(4):
            frame = watch.step()
            weights["a"] = 0.9 * weights["a"]
    assert frame is not None
    text = write_report(tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    assert len([link for link in page.links if link.startswith("data:")]) == 5
    assert "in the band of their proved bounds" in text
    # The charts: bands of effective and stable rank, one chance level for the pair and each matrix.
    assert text.count('"fill":"toself"') >= 4
    assert text.count('"dash":"dash"') == 3
    chance = frame.chance
    assert f"{chance.alignment['a', 'b']:.2g}" in page.cells
    assert any(cell.endswith(f"({chance.agreement['a']:.2g})") for cell in page.cells)


def test_the_report_compares_with_the_end_of_the_run(tmp_path: Path) -> None:
    weights = {"a": torch.randn(6, 4)}
    with Recorder(tmp_path) as recorder:
        watch = SpectralMonitor(
            weights, every=1, method="exact", reference="final", recorder=recorder
        )
        for _ in range(3):
            watch.step()
            weights["a"] = weights["a"] + 0.1 * torch.randn(6, 4)
    run = load_run(tmp_path)
    assert run.agreement == {}
    text = write_report(run).read_text(encoding="utf-8")
    assert "Agreement score" in text
    assert load_run(tmp_path).agreement["a"].shape == (3, 4)


def test_an_empty_run_has_none(tmp_path: Path) -> None:
    Recorder(tmp_path).close()
    with pytest.raises(ValueError, match="nothing was recorded"):
        write_report(tmp_path)
