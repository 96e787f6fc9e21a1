"""IDX files, the format that MNIST comes in: a magic number, the sizes, then bytes.

Two zero bytes, a type (8: unsigned bytes), the number of axes, each axis's size as a big-endian
uint32, and the values, last axis fastest (LeCun, Cortes, Burges, "The MNIST database").
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

_UNSIGNED_BYTES = 8


def find_idx(folder: Path, name: str) -> Path | None:
    """``folder / name``, or the same with ``.gz``, whichever is there; the first where both are."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def read_idx(path: Path, *, axes: int) -> Tensor:
    """The uint8 tensor in an IDX file with so many axes, gunzipped where its name ends in .gz.

    Raises ``ValueError`` for a file of another type or length than its header says.
    """
    content = _content(path)
    header = 4 + 4 * axes
    magic = bytes([0, 0, _UNSIGNED_BYTES, axes])
    if len(content) < header or content[:4] != magic:
        raise ValueError(
            f"{path} begins with {content[:4].hex() or 'nothing'}; expected {magic.hex()}, "
            f"an IDX file of unsigned bytes with {axes} axes"
        )
    sizes = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4)]
    if len(content) - header != math.prod(sizes):
        raise ValueError(
            f"{path} has {len(content) - header} values; expected {math.prod(sizes)}, "
            f"{' × '.join(map(str, sizes))} as its header says"
        )
    # A bytearray, because a tensor may be written to and bytes may not.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[header:].view(sizes)


def _content(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            return file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file: {error}") from error
