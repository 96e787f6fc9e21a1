"""Files of a run folder: written whole or not at all."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path

__all__ = ["append", "write_atomically"]


def append(file: FileIO, data: bytes) -> None:
    """All of it or nothing, as far as errors go: a full disk must not leave half a record."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        written = len(data) - len(rest)
        os.truncate(file.fileno(), os.fstat(file.fileno()).st_size - written)
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file; a kill on the way leaves the old one."""
    draft = path.with_suffix(".tmp")
    draft.write_bytes(data)
    os.replace(draft, path)
