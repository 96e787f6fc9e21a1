"""The fixture that every other test leans on: memory that nobody wrote is NaN."""

from __future__ import annotations

import torch


def test_empty_is_nan() -> None:
    for dtype in (torch.float32, torch.float64):
        assert torch.empty(3, 4, dtype=dtype).isnan().all()
        assert torch.ones(2, dtype=dtype).new_empty(5).isnan().all()
