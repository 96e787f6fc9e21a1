"""A short notation for which layers of a model feed which, and its parser.

::

    #wte & #wpe > h*(attn{qkv=c_attn o=c_proj layout=roles} > mlp(c_fc > c_proj)) > lm_head

=================  ====================================================================
``a ~ b``          outputs of the two meet, as those of queries and keys do
``a > b``          what leaves ``a`` arrives at ``b``; binds less than ``&``
``a & b``          both read the same, and what leaves each arrives at what comes next
``.``              nothing in between: ``. & se(fc1 > fc2)`` is something scaled by that
``a >> b``         what leaves ``a`` is what cross attentions read; ``b`` starts anew
``path(...)``      names inside are relative to ``path``
``path*(...)``     each child of ``path``, one after the other
``path+(...)``     each child of ``path``, side by side, such as experts
``path=(...)``     the matrices of stacked parameters, side by side: the first of each, ...
``path?(a : b)``    ``a`` where the model has the path, else ``b``
``path{q=a ...}``  an attention whose roles q, k, v, o or qkv are the units named; other
                   words are its options, see `spectral_monitor.pairs.attention`
``#a``             a table, of which rows are looked up
``-a``             reads, but nothing reads what leaves it, such as a router
``a/gate,up``      rows of equal count that go on apart, as of a fused gated layer; those
                   without a name do not
``a/latent+``      the next reads as many of the first rows as it has inputs
``a%4``            the input has four places side by side; the first stands for all
``a|b``            the first of these that is there
=================  ====================================================================

A path is a dotted name, or nothing: ``*(...)``. At the top of a flow it is looked for further down,
too, since models are wrapped (``model.``, ``bert.``). What a model does not have is as if it were
not written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

_TOKENS = re.compile(r"\s*(>>|\w[\w.|]*(?:/[\w,]+\+?)?|\S)")


@dataclass(frozen=True, slots=True)
class Flow:
    """A node of a flow; ``kind`` is its sign in the table above, "" of a layer or parameter."""

    kind: str
    path: str = ""
    parts: tuple[Flow, ...] = ()
    """What it is made of; of ``?`` what is meant where the path is there, and where not."""
    rows: tuple[str, ...] = ()
    """Of ``/``: names of rows that go on apart; of ``+/`` the name of the first rows."""
    options: tuple[tuple[str, str], ...] = ()
    """Of ``{``: (role, path of its unit), and (option, value)."""
    neighbours: int = 1
    """Of ``%``: how many places the input has side by side."""


@cache
def parse(text: str) -> Flow:
    """The flow that a text stands for.

    Raises:
        ValueError: the text does not follow the notation; the message has the place.
    """
    reader = _Reader(text)
    flow = reader.flow()
    if reader.next:
        raise reader.error("the end")
    return flow


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self.next = ""
        self._advance()

    def error(self, expected: str) -> ValueError:
        before = self._text[: self._at - len(self.next)]
        return ValueError(f"flow: expected {expected}, got {self.next!r} after {before!r}")

    def _advance(self) -> str:
        was = self.next
        token = _TOKENS.match(self._text, self._at)
        self.next = token[1] if token else ""
        self._at = token.end() if token else len(self._text)
        return was

    def _take(self, token: str) -> bool:
        if self.next != token:
            return False
        self._advance()
        return True

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise self.error(repr(token))

    def _path(self) -> str:
        if not re.match(r"\w", self.next):
            raise self.error("a path")
        return self._advance()

    def flow(self) -> Flow:
        first = self._series()
        return Flow("~", parts=(first, self._series())) if self._take("~") else first

    def _series(self) -> Flow:
        parts = [self._sides()]
        while self.next in (">", ">>"):
            if self._advance() == ">>":
                parts = [Flow(">>", parts=(_of_several(">", parts),))]
            parts.append(self._sides())
        return _of_several(">", parts)

    def _sides(self) -> Flow:
        branches = [self._item()]
        while self._take("&"):
            branches.append(self._item())
        return _of_several("&", branches)

    def _item(self) -> Flow:
        if self._take("."):
            return Flow(".")
        if self._take("-"):
            return Flow("-", parts=(self._item(),))
        if self._take("("):
            return self._inner()
        if self._take("#"):
            return Flow("#", self._path())
        if self.next in ("{", "*", "+"):
            return self._of("")
        path, _, parts = self._path().partition("/")
        if self._take("%"):
            return Flow("%", path, neighbours=int(self._path()))
        if parts.endswith("+"):
            return Flow("+/", path, rows=(parts[:-1],))
        if parts:
            return Flow("/", path, rows=tuple(parts.split(",")))
        return self._of(path)

    def _of(self, path: str) -> Flow:
        """The node of a path and of what follows it in the text."""
        if self._take("{"):
            return Flow("{", path, options=tuple(self._roles()))
        if self._take("("):
            return Flow("(", path, (self._inner(),))
        if self._take("?"):
            return self._either(path)
        if self.next not in ("*", "+", "="):
            return Flow("", path)
        kind = self._advance()
        self._expect("(")
        return Flow(kind, path, (self._inner(),))

    def _either(self, path: str) -> Flow:
        self._expect("(")
        present = self.flow()
        self._expect(":")
        return Flow("?", path, (present, self._inner()))

    def _inner(self) -> Flow:
        inner = self.flow()
        self._expect(")")
        return inner

    def _roles(self) -> list[tuple[str, str]]:
        roles = []
        while not self._take("}"):
            role = self._path()
            self._expect("=")
            roles.append((role, self._path()))
        return roles


def _of_several(kind: str, parts: list[Flow]) -> Flow:
    """The only part, or a node of all."""
    return parts[0] if len(parts) == 1 else Flow(kind, parts=tuple(parts))
