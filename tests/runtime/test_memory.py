"""Where tensors lie: what counts as the same memory, and what does not."""

from __future__ import annotations

import torch
from torch import nn

from spectral_kernels.runtime.memory import (
    Memory,
    addresses,
    flattened,
    is_view,
    matrix_argument,
    place,
)


def test_views_and_arrays_of_the_same_memory_are_in_place() -> None:
    parameter = nn.Parameter(torch.randn(6, 4))
    memory = Memory([parameter[:2], parameter.mT])
    assert memory.is_of([parameter[:2], parameter.mT])
    assert memory.is_of([torch.from_numpy(parameter.detach().numpy())[:2], parameter.detach().T])


def test_every_difference_of_layout_or_address_is_seen() -> None:
    A = torch.randn(6, 6)
    memory = Memory([A])
    others = (A[:5], A.mT, A[:, 1:], A.view(torch.int32), A.clone(), A.as_strided((6, 6), (3, 1)))
    assert not any(memory.is_of([other]) for other in others)
    assert not memory.is_of([])
    assert not memory.is_of([A, A])
    assert len({place(x) for x in (A, *others)}) == 1 + len(others)


def test_a_moved_parameter_lies_elsewhere() -> None:
    parameter = nn.Parameter(torch.randn(6, 4))
    memory = Memory([parameter])
    parameter.data = parameter.detach().clone()
    assert not memory.is_of([parameter])
    assert memory.is_like([parameter])
    parameter.data = parameter.detach().mT
    assert not memory.is_like([parameter])


def test_memory_is_not_given_to_others_meanwhile() -> None:
    parameter = nn.Parameter(torch.randn(64, 64))
    memory = Memory([parameter])
    parameter.data = torch.zeros(64, 64)
    assert not any(memory.is_of([torch.empty(64, 64)]) for _ in range(50))


def test_batches_without_one_stride_are_copied() -> None:
    batch = torch.randn(2, 3, 5, 4)
    assert is_view(flattened(batch), batch)
    strided = batch.transpose(0, 1)
    flat = flattened(strided)
    assert flat.shape == (6, 5, 4)
    assert not is_view(flat, strided)
    argument, owner = matrix_argument(batch[0].mT)
    assert argument == (batch.data_ptr(), 2, 3, 4, 5, 20, 1, 4)
    assert is_view(owner, batch)


def test_addresses_of_the_parts_of_a_block() -> None:
    block = torch.zeros(9, dtype=torch.float64)
    parts = torch.split(block, [2, 3, 4])
    assert addresses(block, [2, 3, 4]) == [part.data_ptr() for part in parts]
