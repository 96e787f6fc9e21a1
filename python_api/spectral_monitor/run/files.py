"""Files of a run folder: written whole or not at all."""

from __future__ import annotations

import json
import os
from io import FileIO
from pathlib import Path
from typing import Any


def append(file: FileIO, data: Any) -> None:
    """Append all bytes of a buffer or, after an error, none.

    A full disk must not leave half a record.
    """
    whole = rest = memoryview(data).cast("B")
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        written = len(whole) - len(rest)
        os.truncate(file.fileno(), os.fstat(file.fileno()).st_size - written)
        raise


def read_layout(path: Path, *versions: int) -> dict[str, Any] | None:
    """What a JSON file says of the binary one beside it; None where there is none.

    Raises:
        ValueError: another version than these wrote it.
    """
    if not path.exists():
        return None
    layout: dict[str, Any] = json.loads(path.read_text())
    if layout.get("version") not in versions:
        expected = " or ".join(map(str, versions))
        raise ValueError(f"{path}: version {layout.get('version')!r}, expected {expected}")
    return layout


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file; a kill on the way leaves the old one."""
    draft = path.with_suffix(".tmp")
    draft.write_bytes(data)
    os.replace(draft, path)
