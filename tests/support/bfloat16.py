"""bfloat16 in Triton's interpreter, which multiplies its bits as integers and cuts instead of
rounding: products and conversions by torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the two right for one test."""
    builder = interpreter.InterpreterBuilder
    dot, convert = builder.create_dot, interpreter._convert_float

    def wide(self: Any, handle: Any) -> Any:
        narrow = handle.dtype.scalar == tl.bfloat16
        return self.create_fp_ext(handle, tl.float32) if narrow else handle

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, wide(self, a), wide(self, b), *rest)

    def convert_float(x: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(x, source, target, rounding)
        return torch.from_numpy(np.ascontiguousarray(x)).bfloat16().view(torch.uint16).numpy()

    monkeypatch.setattr(builder, "create_dot", create_dot)
    monkeypatch.setattr(interpreter, "_convert_float", convert_float)
