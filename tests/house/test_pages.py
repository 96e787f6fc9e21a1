"""README and docs: examples run and print what is shown, links and commands lead somewhere, figures
are those of recorded runs, and the API has every public name."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import spectral_kernels as sk
from benchmarks.table import markdown

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [
    README,
    *DOCS,
    *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY")),
]

FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", flags=re.MULTILINE | re.DOTALL)
RATIO_HEADING = "| operation | input | peer | times as long |"


class Block(NamedTuple):
    """What stands between fences: its language, its text, and the line of the page it starts at."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(found[2], textwrap.dedent(found[3]), text.count("\n", 0, found.start()) + 2)
        for found in FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    """The page without what stands between fences."""
    return FENCE.sub("", page.read_text())


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def with_examples() -> list[Path]:
    return [page for page in PAGES if any(b.language == "python" for b in blocks(page))]


@pytest.mark.parametrize("page", with_examples(), ids=named)
def test_examples_run_and_print_what_is_shown(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    shown = blocks(page)
    for block, following in zip(shown, [*shown[1:], Block("", "", 0)], strict=True):
        if block.language != "python":
            continue
        # Empty lines before it, so that a traceback has the lines of the page.
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        if following.language == "output":
            assert printed.getvalue() == following.text, f"{named(page)}:{block.line}"


def test_every_output_follows_an_example():
    for page in PAGES:
        shown = blocks(page)
        for before, block in zip([Block("", "", 0), *shown], shown, strict=False):
            if block.language == "output":
                assert before.language == "python", f"{named(page)}:{block.line}"


def test_the_quickstart_is_ten_lines_for_a_python_of_its_own(tmp_path):
    quickstart = next(b.text for b in blocks(README) if b.language == "python")
    assert len([line for line in quickstart.splitlines() if line.strip()]) <= 10
    paths = [str(ROOT), str(ROOT / "python_api")]
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{quickstart}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "'0.weight'" in result.stdout
    assert "('0.weight', '2.weight')" in result.stdout
    lines = (tmp_path / "runs/quickstart/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(50))


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 180


def links(page: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not target.startswith(("http://", "https://")):
            yield target


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files_and_headings(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def test_commands_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    text = "\n".join(page.read_text() for page in PAGES)
    named_targets = set(re.findall(r"`make (?:\w+=\S+ )?([a-z]+)`", text))
    assert {"demo", "test", "docs"} <= named_targets <= targets
    modules = set(re.findall(r"python -m ((?:experiments|benchmarks|tests)[\w.]*)", text))
    experiments = {m for m in modules if ".NAME" in m}
    assert {m for m in modules - experiments if importlib.util.find_spec(m) is None} == set()
    for path in re.findall(r"`(?:bash )?((?:benchmarks|docs|tests|csrc)/[\w./-]+)", text):
        assert "NAME" in path or (ROOT / path).exists(), path


def test_ratios_are_those_of_the_recorded_run():
    record = json.loads((ROOT / "benchmarks/results/cpu.json").read_text())
    assert markdown(record) == (ROOT / "benchmarks/results/cpu.md").read_text()
    times = {
        (row["operation"], row["case"], row["contender"]): row["median_ms"]
        for row in record["rows"]
        if "median_ms" in row
    }
    for page in (README, ROOT / "docs/benchmarks.md"):
        table = page.read_text().split(RATIO_HEADING)[1].split("\n\n")[0].splitlines()[2:]
        assert len(table) >= 8
        for line in table:
            operation, case, peer, ratio = (cell.strip() for cell in line.strip("| ").split(" | "))
            measured = times[operation, case, peer] / times[operation, case, "ours"]
            assert f"{measured:.3g}" == ratio or f"{measured:.2g}" == ratio, line


def test_the_api_has_every_public_name_once():
    pages = "\n".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    listed = re.findall(r"^::: sk\.(\w+)$", pages, flags=re.MULTILINE)
    assert sorted(listed) == sorted(sk.__all__)


def test_the_documentation_builds_without_a_warning_and_loads_nothing(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra [docs] is not installed")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    pages = {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*.html")}
    assert len(pages) >= len(DOCS)
    loaded = r"<(?:script|img|iframe)[^>]* src=\"https?:|<link[^>]* href=\"https?:"
    assert {name for name, page in pages.items() if re.search(loaded, page)} == set()
    # Docstrings are there, not signatures alone, and their examples as code behind prompts.
    assert "entropy-based effective rank" in pages["api/arrays.html"]
    prompts = {name for name, page in pages.items() if '<span class="gp">' in page}
    assert prompts == {f"api/{page.stem}.html" for page in (ROOT / "docs/api").glob("*.md")}
