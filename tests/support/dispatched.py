"""Modes that refuse operations which would stop a GPU."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Apart(TorchDispatchMode):
    """No operation has tensors of two devices, such as a copy to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, kwargs, result)) if _is_array(x)}
        assert len(devices) <= 1, f"{func} on {sorted(devices)}"
        return result


def _is_array(x: Any) -> bool:
    # A number that torch wraps is an argument of the launch.
    return isinstance(x, Tensor) and not (x.dim() == 0 and x.device.type == "cpu")


class NoReads(TorchDispatchMode):
    """An error where the host asks for a number, or where a size depends on one."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name.lstrip("_") not in [read.lstrip("_") for read in self.READS], name
        return func(*args, **(kwargs or {}))
