"""One thread in a forked child.

GNU's OpenMP, which PyTorch's CPU builds use, keeps its threads for the next parallel region. A fork
copies the list of them and none of the threads: the first region of the child waits for ever. The
compiled kernels see to their own regions (csrc/cpu/common). This file sees to the products and
factorisations of torch that the library calls: where parent or child compute here, the child's
torch has one thread, which is also what DataLoader gives its workers. ``torch.set_num_threads`` in
the child takes it back, at the caller's risk.
"""

from __future__ import annotations

import os

import torch

_used = _forked = False


def forked() -> bool:
    """Return whether this process is a forked child of one that had the library loaded."""
    return _forked


def note_use() -> None:
    """Note that the library is about to compute in this process; the first time matters."""
    global _used
    if _used:
        return
    _used = True
    if _forked:
        torch.set_num_threads(1)


def _in_child() -> None:
    global _forked
    _forked = True
    if _used:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
