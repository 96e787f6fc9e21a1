"""No function reads at an address where the values are not: a named error, or the right values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import spectral_kernels as sk
from spectral_kernels.entry.readable import is_readable, resolved, why_unreadable
from spectral_kernels.rsvd.op import rsvd_list
from spectral_kernels.snapshot.op import snapshot_list
from spectral_kernels.svd.op import svd_list, svdvals_list
from tests.support.odd_tensors import READ, REFUSED, SHAPE, WITHOUT_VALUES, distributed, one_rank
from tests.support.takers import TAKES_A_MATRIX

LISTS: dict[str, Callable[[Any], Any]] = {
    "svd_list": lambda x: svd_list([x]),
    "svdvals_list": lambda x: svdvals_list([x]),
    "rsvd_list": lambda x: rsvd_list([x], [1]),
    "snapshot_list": lambda x: snapshot_list([x]),
    "tracker": lambda x: sk.SpectrumTracker().update(x),
    "tracker of a list": lambda x: sk.SpectrumTracker().update([torch.eye(2), x]),
    "leading tracker": lambda x: sk.SpectrumTracker(2).update(x),
    "reusing tracker": lambda x: sk.SpectrumTracker(reuse_buffers=True).update(x),
    "tracker of factors": lambda x: sk.SpectrumTracker().update(
        sk.Decomposed(x, torch.eye(4), torch.eye(4))
    ),
}
# A product of torch's own operators, which training calls at every step, is as they are.
FUNCTIONS = {n: f for n, f in {**TAKES_A_MATRIX, **LISTS}.items() if n != "usv_matmul"}


@pytest.fixture
def matrix() -> Tensor:
    return torch.randn(SHAPE)


@pytest.fixture
def rank() -> Iterator[None]:
    with one_rank():
        yield


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(name: str, kind: str, matrix: Tensor) -> None:
    make, error, told = REFUSED[kind]
    with pytest.raises(error, match=told):
        FUNCTIONS[name](make(matrix))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_dtensors(name: str, matrix: Tensor, rank: None) -> None:
    """Their own address is 0: reading there ended the process."""
    x = distributed(matrix)
    with pytest.raises(TypeError, match=r"is a DTensor.*\.full_tensor\(\) on every rank"):
        FUNCTIONS[name](x)
    assert is_readable(x.full_tensor())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("kind", WITHOUT_VALUES)
def test_what_has_no_values_is_refused_past_the_operators(
    name: str, kind: str, matrix: Tensor
) -> None:
    make, told = WITHOUT_VALUES[kind]
    with pytest.raises(ValueError, match=told):
        LISTS[name](make(matrix))


@pytest.mark.parametrize("name", LISTS)
def test_transformed_tensors_are_refused_past_the_operators(name: str) -> None:
    for transform in (torch.func.vmap, torch.func.functionalize):
        with pytest.raises(ValueError, match=r"inside torch\.compile or torch\.func"):
            transform(LISTS[name])(torch.randn(3, *SHAPE))


@pytest.mark.parametrize("name", ["svdvals", "svd", "effective_rank"])
@pytest.mark.parametrize("kind", WITHOUT_VALUES)
def test_operators_answer_for_shapes(name: str, kind: str, matrix: Tensor) -> None:
    x = WITHOUT_VALUES[kind][0](matrix)
    found = FUNCTIONS[name](x)
    values = found.S if isinstance(found, sk.SVD) else found
    assert (type(values), values.device) == (type(x), x.device)


@pytest.mark.parametrize("kind", READ)
def test_what_is_read_is_read_right(kind: str, matrix: Tensor) -> None:
    x = READ[kind](matrix)
    plain = torch.tensor(x.clone().tolist()).reshape(x.shape)
    assert why_unreadable(x) is None
    assert torch.equal(resolved(x, "A"), plain)
    assert torch.equal(snapshot_list([x]).matrices[0], plain)
    results = [sk.svd(x), svd_list([x])[0]]
    results += [sk.SpectrumTracker(k).update(x) for k in (None, 4)]
    for U, S, Vh in results:
        torch.testing.assert_close(U * S @ Vh, plain, atol=2e-6, rtol=0)
    torch.testing.assert_close(sk.svdvals(x), sk.svdvals(plain))


@pytest.mark.parametrize("k", [None, 4])
@pytest.mark.parametrize("reuse", [True, False])
def test_a_tracker_sees_signs_that_change_in_the_same_memory(k: int | None, reuse: bool) -> None:
    """Address, shape, strides and dtype are those of the last update, and the values are not."""
    tracker = sk.SpectrumTracker(k, reuse_buffers=reuse)
    A = torch.randn(SHAPE)
    for x in (A, torch._neg_view(A), A, torch._neg_view(A)):
        U, S, Vh = tracker.update(x)
        torch.testing.assert_close(U * S @ Vh, x.resolve_neg(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("k", [None, 4])
def test_a_tracker_goes_on_after_a_refusal(k: int | None) -> None:
    """Memory that is freed and comes back, as that of a sharded parameter."""
    tracker, other = sk.SpectrumTracker(k, reuse_buffers=True), sk.SpectrumTracker(k)
    A = torch.randn(SHAPE)
    for _ in range(2):
        tracker.update(A)
        other.update(A)
    values, storage = A.clone(), A.untyped_storage()
    storage.resize_(0)
    with pytest.raises(ValueError, match="its memory was freed"):
        tracker.update(A)
    storage.resize_(values.nbytes)
    A.copy_(values)
    for mine, plain in zip(tracker.update(A), other.update(A), strict=True):
        assert torch.equal(mine, plain)


def test_gradients_pass_through_lazy_signs() -> None:
    A = torch.randn(SHAPE, requires_grad=True)
    (mine,) = torch.autograd.grad(sk.svdvals(torch._neg_view(A)).sum(), A)
    (plain,) = torch.autograd.grad(sk.svdvals(A).sum(), A)
    torch.testing.assert_close(mine, plain)
