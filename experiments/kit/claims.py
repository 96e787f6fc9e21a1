"""A statement of a paper that a run can test, beside what the run measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Claim:
    """One row of ``summary.json``'s ``claims``.

    ``expected`` is the paper's figure or the rule that decides, ``measured`` the run's own figure,
    and ``holds`` whether the second meets the first. A claim that does not hold stays a row.
    """

    claim: str
    source: str
    expected: Any
    measured: Any
    holds: bool

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON values; numbers that JSON has no word for become None."""
        return {key: json_value(value) for key, value in asdict(self).items()}


def json_value(value: Any) -> Any:
    """``value`` with NaN and infinities replaced by None, inside dicts and lists too."""
    if isinstance(value, dict):
        return {key: json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def claims_table(claims: Sequence[Mapping[str, Any]]) -> str:
    """Whether each row of a ``summary.json`` holds, and what was measured, as text."""
    lines = []
    for claim in claims:
        lines.append(f"{'holds    ' if claim['holds'] else 'DOES NOT '} {claim['claim']}")
        lines.append(f"          expected {claim['expected']}  [{claim['source']}]")
        lines.append(f"          measured {_brief(claim['measured'])}")
    return "\n".join(lines)


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.removesuffix('.weight')} {_brief(v)}" for key, v in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
