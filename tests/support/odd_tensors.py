"""Tensors whose values are not at their address, in one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.masked import masked_tensor
from torch.testing._internal.two_tensor import TwoTensor

SHAPE = (6, 4)


@contextmanager
def one_rank() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def freed(A: Tensor, first: int = 0, nbytes: int = 0, transposed: bool = False) -> Tensor:
    """A tensor of the values of A, whose memory was given back, or all of it but so many bytes."""
    whole = torch.cat([A[:first], A])
    part = whole[first:]
    if transposed:
        part = part.mT
    whole.untyped_storage().resize_(nbytes)
    return part


def fake(A: Tensor) -> Tensor:
    with FakeTensorMode():
        return torch.empty(A.shape)


def distributed(A: Tensor) -> Tensor:
    """A DTensor; for use within `one_rank`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(A, init_device_mesh("cpu", (1,)), [Shard(0)])


# Kind -> how to make one, the error, and what its message says; every function refuses these.
REFUSED = {
    "subclass": (lambda A: TwoTensor(A, A), TypeError, r"is a .*TwoTensor, a tensor subclass"),
    "masked": (lambda A: masked_tensor(A, A > 0), TypeError, r"is a .*MaskedTensor"),
    "coo": (lambda A: A.to_sparse(), TypeError, r"has layout torch.sparse_coo; .*to_dense"),
    "csr": (lambda A: A.to_sparse_csr(), TypeError, r"has layout torch.sparse_csr"),
    "csc": (lambda A: A.to_sparse_csc(), TypeError, r"has layout torch.sparse_csc"),
    "bsr": (lambda A: A.to_sparse_bsr((2, 2)), TypeError, r"has layout torch.sparse_bsr"),
    "mkldnn": (lambda A: A.to_mkldnn(), TypeError, r"has layout torch._mkldnn"),
    "nested": (lambda A: torch.nested.nested_tensor([A, A]), TypeError, r"nested.*unbind"),
    "jagged": (
        lambda A: torch.nested.nested_tensor([A, A], layout=torch.jagged),
        TypeError,
        r"is a nested tensor",
    ),
    "quantised": (
        lambda A: torch.quantize_per_tensor(A, 0.1, 0, torch.qint8),
        TypeError,
        r"has dtype qint8; expected float16",
    ),
    "complex": (lambda A: torch.complex(A, A).conj(), TypeError, r"has dtype complex64"),
    "lazy": (lambda A: nn.UninitializedParameter(), ValueError, r"is not initialised yet \(lazy\)"),
    "freed": (freed, ValueError, r"storage of 0 bytes where its shape needs 96.*freed"),
    "freed view": (lambda A: freed(A, 2), ValueError, r"0 bytes where its shape needs 128"),
    "shrunk": (lambda A: freed(A, 0, 95), ValueError, r"95 bytes where its shape needs 96"),
    "shrunk, transposed": (lambda A: freed(A, 0, 92, True), ValueError, r"92 bytes .* needs 96"),
}

# These have no values, but shapes and types, which operators of torch answer for.
WITHOUT_VALUES = {
    "meta": (lambda A: A.to("meta"), r"is on the meta device and has no values"),
    "fake": (fake, r"is a FakeTensor inside torch.compile or torch.func"),
}

# Not as plain as others, and read all the same.
READ = {
    "negated": lambda A: torch.complex(torch.zeros_like(A), A).conj().imag,
    "negated twice": lambda A: torch._neg_view(torch._neg_view(A)),
    "negated view": lambda A: torch._neg_view(A)[1:, 1:],
    "real part": lambda A: torch.complex(A, A).real,
    "expanded": lambda A: A[:1].expand(*SHAPE),
    "scalar": lambda A: A[0, 0].expand(*SHAPE),
    "overlapping": lambda A: A.as_strided((6, 4), (1, 1)),
    "transposed": lambda A: A.mT,
    "every other": lambda A: A[::2, ::2],
    "no rows": lambda A: A[:0],
    "zeros of forward mode": lambda A: torch._efficientzerotensor(SHAPE),
    "plain subclass": lambda A: A.as_subclass(type("Plain", (Tensor,), {})),
}
