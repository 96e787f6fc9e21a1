"""What `make docs` does beyond mkdocs: names of the API by their public path, code in docstrings.

``::: sk.svd`` on a page becomes the path of the module that defines the function, which the pages
need not know, and which differs from ``spectral_kernels.svd``, the package of that name.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

import griffe

_IDENTIFIER = re.compile(r"^::: (\S+)$", flags=re.MULTILINE)
_LITERAL = re.compile(r"^( *)(.*)::\n\n((?:\1 +\S.*\n|\n)+)", flags=re.MULTILINE)
_EXAMPLE = re.compile(r"^( *)Example:$", flags=re.MULTILINE)
_PACKAGES = {"sk": "spectral_kernels"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace public paths after ``:::`` by those of definitions."""
    return _IDENTIFIER.sub(lambda found: f"::: {defined_at(found[1])}", markdown)


def defined_at(public: str) -> str:
    """The path of the module and the name in it of what a package hands on.

    Raises:
        AttributeError: the package has no such name.
    """
    package, _, name = public.partition(".")
    value = getattr(importlib.import_module(_PACKAGES.get(package, package)), name)
    return f"{value.__module__}.{value.__qualname__}"


class CodeInDocstrings(griffe.Extension):
    """Docstrings whose code is shown as code: examples, and what is indented after ``::``."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            # griffe knows the plural alone as a section; "Example:" would be a note of its own.
            text = _EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
            obj.docstring.value = fenced(text)


def fenced(text: str) -> str:
    """``text`` with each literal block as a fence of Python."""

    def fence(found: re.Match[str]) -> str:
        indent, lead, block = found[1], found[2], found[3].rstrip("\n")
        lead = f"{indent}{lead}:\n\n" if lead else ""
        lines = block.splitlines()
        inner = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
        code = "\n".join(indent + line[inner:] for line in lines)
        return f"{lead}{indent}```python\n{code}\n{indent}```\n\n"

    return _LITERAL.sub(fence, text + "\n")
