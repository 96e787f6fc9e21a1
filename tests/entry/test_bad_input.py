"""Wrong input is refused with a message that names what was given and what is expected."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from tests.support.takers import TAKES_A_MATRIX

A = torch.ones(4, 3)
USV = sk.svd(torch.randn(4, 3))


CHECKS_FINITE = {
    "svd": sk.svd,
    "svdvals": sk.svdvals,
    "rsvd": lambda x, **o: sk.rsvd(x, 1, **o),
    "effective_rank": sk.effective_rank,
    "stable_rank": sk.stable_rank,
    "numerical_rank": sk.numerical_rank,
    "feature_rank": sk.feature_rank,
    "spectral_summary": sk.spectral_summary,
    "decompose": sk.decompose,
}


@pytest.mark.parametrize("name", TAKES_A_MATRIX)
@pytest.mark.parametrize(
    "wrong",
    [
        torch.ones(3, 3, dtype=torch.int64),
        torch.ones(3, 3, dtype=torch.complex64),
        torch.ones(3, 3, dtype=torch.bool),
        torch.ones(3, 3).to_sparse(),
        np.ones((3, 3), dtype=np.int32),
        np.ones((3, 3), dtype=complex),
        np.ones((3, 3), dtype=object),
        np.longdouble(np.ones((3, 3))),
    ],
    ids=["int64", "complex64", "bool", "sparse", "np int", "np complex", "np object", "longdouble"],
)
def test_dtypes(name: str, wrong: object) -> None:
    with pytest.raises(TypeError, match=r"has (dtype|layout) .*; expected "):
        TAKES_A_MATRIX[name](wrong)


@pytest.mark.parametrize("name", TAKES_A_MATRIX)
def test_not_an_array(name: str) -> None:
    with pytest.raises(TypeError, match=r"is a builtins\.(str|float); expected a torch\.Tensor"):
        TAKES_A_MATRIX[name]("matrix")
    with pytest.raises(TypeError, match=r"\[0\] is a builtins\.float; expected"):
        TAKES_A_MATRIX[name]([1.0, 2.0])


@pytest.mark.parametrize("name", TAKES_A_MATRIX)
@pytest.mark.parametrize("shape", [(), (5,)], ids=str)
def test_too_few_dimensions(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=rf"has shape {re.escape(str(shape))}; expected at least two"
    ):
        TAKES_A_MATRIX[name](torch.ones(shape))


@pytest.mark.parametrize("name", CHECKS_FINITE)
def test_check_finite_names_the_index(name: str) -> None:
    function = CHECKS_FINITE[name]
    batch = torch.randn(2, 3, 4, 4)
    function(batch, check_finite=True)
    batch[1, 2, 0, 3] = float("nan")
    with pytest.raises(ValueError, match=r"^[AH]\[1, 2\] holds NaN or Inf; expected finite"):
        function(batch, check_finite=True)
    with pytest.raises(ValueError, match=r"^[AH] holds NaN or Inf"):
        function(np.array([[1.0, np.inf]]), check_finite=True)
    with pytest.raises(ValueError, match=r"^[AH]\[1\]\[1, 2\] holds NaN or Inf"):
        function([A, batch], check_finite=True)


@pytest.mark.parametrize("k", [0, -1, 4, 100])
@pytest.mark.parametrize("function", [sk.rsvd, sk.decompose])
def test_rank_out_of_range(function, k: int) -> None:
    expected = rf"k is {k}; expected 1 <= k <= min\(m, n\) = 3 for A of shape \(4, 3\)"
    with pytest.raises(ValueError, match=expected):
        function(A, k)
    with pytest.raises(ValueError, match=rf"k is {k}; .* A\[1\] of shape \(4, 3\)"):
        function([torch.ones(200, 200), A], k) if k > 0 else sk.rsvd([A, A], [1, k])


@pytest.mark.parametrize("k", [1.0, "2", True])
@pytest.mark.parametrize("function", [sk.rsvd, sk.decompose])
def test_rank_is_no_integer(function, k: object) -> None:
    with pytest.raises(TypeError, match=r"k is .*; expected an integer"):
        function(A, k)


CALLS = [
    (lambda: sk.rsvd(A, 2, oversample=-1), "oversample is -1; expected at least 0"),
    (lambda: sk.rsvd(A, 2, power_iters=-1), "power_iters is -1; expected at least 0"),
    (lambda: sk.rsvd(A, [2]), "expected one integer, or one for each"),
    (lambda: sk.rsvd([A, A], [2]), "k has 1 values; expected one integer, or one for each"),
    (lambda: sk.rsvd(A, 2, start=torch.ones(4, 2)), r"block of shape \(4, 2\); expected \(3,\)"),
    (lambda: sk.rsvd(A, 2, start=torch.ones(3, 4)), r"with 1 <= l <= 3"),
    (lambda: sk.rsvd([A, A], 2, start=torch.ones(3, 2)), "expected a list of 2 SVDs"),
    (lambda: sk.rsvd([A, A], 2, start=[None]), "expected a list of 2 SVDs"),
    (lambda: sk.effective_rank(A, form="shannon"), "form is 'shannon'; expected 'entropy' or"),
    (lambda: sk.numerical_rank(A, rtol=-1), "rtol is -1; expected a number >= 0"),
    (lambda: sk.numerical_rank(A, rtol=float("nan")), "rtol is nan; expected"),
    (lambda: sk.feature_rank(A, rtol=-1e-9), "rtol is -1e-09; expected"),
    (lambda: sk.summarize_singular_values(torch.tensor(1.0)), r"S has shape \(\); expected"),
    (lambda: sk.summarize_singular_values(torch.ones(5), (4, 9)), r"has 4 singular values; expec"),
    (lambda: sk.summarize_singular_values([torch.ones(5)], [(5, 5)] * 2), "lists 2 shapes; expec"),
    (
        lambda: sk.bounds_from_leading_values(torch.ones(5), 9.0, 4),
        r"\(5,\); expected .* 1 <= k <= 4",
    ),
    (
        lambda: sk.bounds_from_leading_values(torch.ones(2, 3), torch.ones(3), 4),
        r"\(3,\); expected \(2,\)",
    ),
    (
        lambda: sk.bounds_from_leading_values(torch.ones(3), np.ones(()), 4),
        "expected one kind",
    ),
    (lambda: sk.alignment_matrix(A, A), r"do not chain: U is \(4, 3\) and Vh_next is \(4, 3\)"),
    (lambda: sk.alignment_diagonal(A, A), r"do not chain: U is \(4, 3\) and Vh_next is \(4, 3\)"),
    (lambda: sk.alignment_diagonal(A, A.T, k=0), "k is 0; expected at least 1"),
    (lambda: sk.alignment_diagonal(A[None], A.T), r"do not chain: U is \(1, 4, 3\)"),
    (lambda: sk.alignment_diagonal(A, [A.T]), "U one array, Vh_next a list of 1"),
    (lambda: sk.alignment_diagonal([A], [A.T, A.T]), "U a list of 1, Vh_next a list of 2"),
    (lambda: sk.alignment_diagonal(A, A.T.numpy()), "U torch, Vh_next numpy; expected one kind"),
    (lambda: sk.alignment_score(torch.ones(3), top=0), "top is 0; expected at least 1"),
    (lambda: sk.alignment_score(torch.tensor(1.0)), r"diagonal has shape \(\)"),
    (lambda: sk.singular_vector_agreement(USV, sk.svd(torch.ones(5, 3))), r"svd_a\.U is \(4, 3\)"),
    (lambda: sk.singular_vector_agreement(USV, USV, k=-2), "k is -2; expected at least 1"),
    (
        lambda: sk.singular_vector_agreement(sk.SVD(A, A, USV.Vh[:2]), USV),
        "U's k is 3 and Vh's k is 2; expected equal numbers of triplets",
    ),
    (lambda: sk.subspace_overlap(A, torch.ones(5, 3)), r"Q_a is \(4, 3\) and Q_b\^T is \(3, 5\)"),
    (
        lambda: sk.bounds_from_residuals(A, USV.U, USV.S[:2], USV.Vh),
        r"S \(2,\), Vh \(3, 3\); expected",
    ),
    (
        lambda: sk.bounds_from_residuals(A, *sk.svd(torch.ones(4, 5))),
        "do not chain: A is",
    ),
    (
        lambda: sk.bounds_from_residuals(A, torch.ones(4, 9), torch.ones(9), torch.ones(9, 3)),
        "at most min",
    ),
    (lambda: sk.recompose(A, torch.ones(2), A.T), r"do not chain: U is \(4, 3\), Sigma \(2,\)"),
    (lambda: sk.recompose(A, torch.ones(3), A), r"Vh \(4, 3\); expected"),
    (lambda: sk.recompose(A, torch.ones(3), A.T, out=torch.ones(4, 3)), r"expected a torch array"),
    (lambda: sk.recompose([A], [torch.ones(3)], [A.T], out=A), "expected a single matrix"),
    (lambda: sk.recompose(A, torch.ones(3), A.T, out=np.ones((4, 4))), "out is a numpy array of"),
    (lambda: sk.usv_matmul(torch.ones(2, 5), *USV), r"x is \(2, 5\) .* x of shape \(\.\.\., 3\)"),
    (
        lambda: sk.usv_matmul(torch.ones(2, 3), *USV, torch.ones(3)),
        r"bias is \(3,\); expected \(4,\)",
    ),
    (lambda: sk.usv_matmul(torch.ones(2, 3).double(), *USV), "dtypes differ: x torch.float64"),
    (lambda: sk.usv_matmul(torch.ones(3), *(x[None] for x in USV)), r"expected x of shape \(1, 'p"),
    (lambda: sk.usv_matmul(torch.ones(2, 3), *USV, out=torch.ones(2, 5)), r"of shape \(2, 4\)"),
    (lambda: sk.break_even_rank(-1, 3), "m is -1; expected at least 0"),
]


@pytest.mark.parametrize(("call", "message"), CALLS, ids=[m for _, m in CALLS])
def test_values(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_types() -> None:
    with pytest.raises(TypeError, match=r"n is 2\.5; expected an integer"):
        sk.break_even_rank(3, 2.5)
    with pytest.raises(TypeError, match=r"power_iters is 1\.5; expected an integer"):
        sk.rsvd(A, 1, power_iters=1.5)
    with pytest.raises(TypeError, match="svd_b is a Tensor; expected an SVD"):
        sk.singular_vector_agreement(USV, A)


def test_read_only_and_backward_out() -> None:
    parts = [np.asarray(x) for x in USV]
    out = np.zeros((4, 3), dtype=np.float32)
    out.setflags(write=False)
    with pytest.raises(ValueError, match="out is read-only"):
        sk.recompose(*parts, out=out)
    with pytest.raises(ValueError, match="expected positive strides"):
        sk.recompose(*parts, out=np.zeros((4, 3), dtype=np.float32)[::-1])


def test_mixed_devices() -> None:
    """The meta device stands for a GPU: the check comes before any kernel."""
    other = torch.ones(4, 3, device="meta")
    for call in (
        lambda: sk.svdvals([A, other]),
        lambda: sk.spectral_summary([A, other]),
        lambda: sk.alignment_diagonal(A, other.T),
        lambda: sk.bounds_from_residuals(other, *USV),
        lambda: sk.usv_matmul(torch.ones(2, 3, device="meta"), *USV),
        lambda: sk.rsvd(A, 2, start=torch.ones(3, 2, device="meta")),
    ):
        with pytest.raises(ValueError, match=r"tensors on different devices: .* meta.*one device"):
            call()


@pytest.mark.parametrize("name", ["feature_rank", "rsvd", "decompose", "bounds_from_residuals"])
@pytest.mark.parametrize("parts", [USV, sk.decompose(A)], ids=["SVD", "Decomposed"])
def test_the_parts_of_a_matrix_are_not_a_batch(name, parts):
    told = f"is a {type(parts).__name__} of {', '.join(parts._fields)}; expected an array"
    with pytest.raises(TypeError, match=told):
        TAKES_A_MATRIX[name](parts)


def test_an_svd_is_no_matrix():
    with pytest.raises(TypeError, match="A is a SVD of U, S, Vh; expected an array"):
        sk.svdvals(USV)
