"""Name patterns: ``*`` and ``?`` as in a shell, every other character as it is.

``fnmatch`` reads ``[`` as the start of a character class, which would make the names of
parts, ``lstm.weight_ih_l0[gate g]``, impossible to write.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Sequence

__all__ = ["check_all_matched", "matches"]


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.compile("".join(parts) + r"\Z", re.DOTALL)


def matches(name: str, pattern: str) -> bool:
    """Whether ``name`` as a whole fits ``pattern``."""
    return _compiled(pattern).match(name) is not None


def check_all_matched(option: str, patterns: Sequence[str], names: Iterable[str]) -> None:
    """Raise `ValueError` for a pattern that fits no name: most often a misspelt layer."""
    known = list(names)
    for pattern in patterns:
        if any(matches(name, pattern) for name in known):
            continue
        near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.4)
        hint = f"; near names: {', '.join(near)}" if near else f"; names: {', '.join(known[:8])}"
        raise ValueError(f"{option}: the pattern {pattern!r} fits no parameter{hint}")
