"""Names of matrices: without wrappers, distinct from each other, and patterns that choose some.

What is made of a parameter is called after it, with an ending in brackets: ``w[0]``, ``w[head 2]``,
``w[update]``. A parameter whose own name reads like that, beside one called ``w``, would share its
name with a part of ``w``, so that its brackets are written round: ``w(update)``.

In patterns ``*`` and ``?`` are as in a shell, and every other character is as it is: ``fnmatch``
reads ``[`` as the start of a character class, which would make these names impossible to write.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.compile("".join(parts) + r"\Z", re.DOTALL)


def matches(name: str, pattern: str) -> bool:
    """Whether ``name`` as a whole fits ``pattern``."""
    return _compiled(pattern).match(name) is not None


def check_all_matched(option: str, patterns: Sequence[str], names: Iterable[str]) -> None:
    """Raise `ValueError` for a pattern that fits no name: most often a misspelt layer."""
    all_names = list(names)
    for pattern in patterns:
        if any(matches(name, pattern) for name in all_names):
            continue
        near = difflib.get_close_matches(pattern, all_names, n=3, cutoff=0.4)
        hint = (
            f"; near names: {', '.join(near)}" if near else f"; names: {', '.join(all_names[:8])}"
        )
        raise ValueError(f"{option}: the pattern {pattern!r} fits no parameter{hint}")


def distinct_name(name: str, parameters: Collection[str]) -> str:
    """What the matrices of a parameter are called; its own name, unless that reads as a part.

    Args:
        name: of the parameter.
        parameters: the names of all.
    """
    places = [i for i, character in enumerate(name) if character == "["]
    if not any(name[:place] in parameters for place in places):
        return name
    called = name.replace("[", "(").replace("]", ")")
    while called in parameters:
        called += "'"
    return called


def renamed(name: str, called: str) -> str:
    """A note for the matrices of a parameter that is not called by its own name, else nothing."""
    if called == name:
        return ""
    return f"called so since {name!r} would read as a part of {name.partition('[')[0]!r}"


def check_distinct(names: Sequence[str]) -> None:
    """Raise `ValueError` naming matrices that share a name, as a rule of the user may make."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"several matrices are called {', '.join(map(repr, twice[:3]))}: a rule has to give "
            "each matrix of a parameter a suffix of its own"
        )
