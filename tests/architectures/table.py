"""The table of ``docs/architectures.md``: what a monitor finds of each architecture."""

from __future__ import annotations

from collections import Counter
from dataclasses import astuple, dataclass, fields
from importlib.metadata import version
from pathlib import Path

from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.pairs.tracing.trace import trace

from .catalogue import Architecture, Example
from .judge import Judgement, judge

__all__ = ["PATH", "Row", "measure", "read", "versions", "write"]

PATH = Path(__file__).resolve().parents[2] / "docs/architectures.md"

_PACKAGES = ("torch", "transformers", "timm", "peft", "transformer-lens")
_INTRODUCTION = """\
# What a monitor finds of real architectures

Each architecture is built small from its configuration (`tests/architectures`), and what feeds what
is written down by hand from its definition; a pair is right where every entry of the singular
vectors that are compared meets the entry that it is compared with. *Wrong* are pairs that a monitor
has and should not have, *missed* those that it should have: a weight is paired with what reads it
next, all heads and all experts of a layer together. *Traced* is
`SpectralMonitor(model, pairs=sk.trace(model, *inputs))`, *without inputs* `SpectralMonitor(model)`,
which names what it leaves out in `explain()`. Where a definition leaves a choice, the rule is in
`tests/architectures/truth.py`.

`python -m tests.architectures --write` renews the table, and a test holds it against a fresh run.
Made with {versions}.

| architecture | watched | not watched | pairs \
| traced: right | wrong | missed | without inputs: right | wrong | missed |
|---|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """One architecture: matrices, pairs by definition, and what was found of them."""

    name: str
    watched: int
    skipped: str
    pairs: int
    traced_right: int
    traced_wrong: int
    traced_missed: int
    right: int
    wrong: int
    missed: int

    @property
    def line(self) -> str:
        """As Markdown."""
        return f"| {' | '.join(map(str, astuple(self)))} |"


def measure(architecture: Architecture) -> tuple[Row, Judgement, Judgement]:
    """The row of an architecture, and what was found with a trace and without."""
    example = architecture.example()
    monitor = SpectralMonitor(example.model, reference=None)
    traced, without = judge(_traced(example), example.truth), judge(monitor, example.truth)
    reasons = Counter(_kind(skipped.reason) for skipped in monitor.skipped)
    row = Row(
        architecture.name,
        len(monitor.matrices),
        ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "0",
        len(example.truth.entries),
        *(len(found) for found in (traced.right, traced.wrong, traced.missed)),
        *(len(found) for found in (without.right, without.wrong, without.missed)),
    )
    return row, traced, without


def _traced(example: Example) -> SpectralMonitor:
    found = trace(example.model, *example.args, **example.kwargs)
    return SpectralMonitor(example.model, reference=None, pairs=found)


def _kind(reason: str) -> str:
    """The reason without its explanation."""
    return reason.partition(":")[0].replace("|", "/")


def versions() -> str:
    """Of the packages that the models come from."""
    return ", ".join(f"{name} {version(name).partition('+')[0]}" for name in _PACKAGES)


def write(rows: list[Row]) -> None:
    """Write the file."""
    PATH.parent.mkdir(exist_ok=True)
    total = Row("all", *(sum(getattr(row, f.name) for row in rows) if f.type == "int" else ""
                         for f in fields(Row)[1:]))  # fmt: skip
    lines = [row.line for row in (*rows, total)]
    text = _INTRODUCTION.format(versions=versions()) + "\n".join(lines) + "\n"
    PATH.write_text(text, encoding="utf-8")


def read() -> tuple[str, dict[str, str]]:
    """The versions that the file was made with, and its lines by architecture."""
    text = PATH.read_text(encoding="utf-8")
    made_with = text.partition("Made with ")[2].partition(".\n\n")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    table = {line.split(" | ")[0].removeprefix("| "): line for line in lines}
    return made_with, {name: line for name, line in table.items() if name != "architecture"}
