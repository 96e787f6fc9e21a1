"""Names of matrices that tell one from another.

What is made of a parameter is called after it, with an ending in brackets: ``w[0]``, ``w[head 2]``,
``w[update]``. A parameter whose own name reads like that, beside one called ``w``, would share its
name with a part of ``w``, so that its brackets are written round: ``w(update)``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

__all__ = ["check_distinct", "distinct_name", "renamed"]


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
