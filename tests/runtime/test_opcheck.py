"""Every operator keeps the promises of torch.library: schema, fake kernel, autograd, compile."""

from __future__ import annotations

import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.runtime import schemas

# Registers the one operator that the face does not need.
from spectral_kernels.snapshot import op as _snapshot  # noqa: F401

OPERATORS = torch.ops.spectral_kernels


def ragged(**options: object) -> list[torch.Tensor]:
    return [torch.randn(5, 4, **options), torch.randn(2, 3, 6, **options), torch.empty(0, 3)]


CASES = {
    "svd": [lambda: (ragged(),), lambda: ([torch.randn(8, 8).half()],)],
    "svdvals": [
        lambda: (ragged(),),
        lambda: (ragged(requires_grad=True),),
        lambda: ([torch.randn(3, 4, dtype=torch.float64).mT],),
        lambda: ([torch.randn(3, 4).bfloat16()],),
    ],
    "svdvals_with_tables": [
        lambda: (ragged(), -1.0),
        lambda: ([torch.randn(3, 4, dtype=torch.float64).mT], 0.1),
    ],
    "rsvd": [
        lambda: ([torch.randn(9, 7)], [torch.randn(7, 5)], [3], [5], torch.tensor(1), 2),
        lambda: (
            [torch.randn(2, 6, 9), torch.randn(4, 4)],
            [torch.randn(2, 9, 1), torch.empty(4, 0)],
            [4, 1],
            [6, 3],
            torch.tensor(2**62 + 5),
            0,
        ),
    ],
    "summarize": [
        lambda: ([torch.rand(4), torch.rand(2, 3).double()], [4, 3], [7, 3], -1.0),
        lambda: ([torch.rand(4, requires_grad=True)], [4], [7], 0.1),
    ],
    "alignment_diagonals": [
        lambda: (
            [torch.randn(6, 4), torch.randn(2, 5, 3)],
            [torch.randn(3, 6), torch.randn(2, 9, 5)],
            2,
        )
    ],
    "cluster_cosines": [
        lambda: (
            [torch.randn(6, 4), torch.randn(2, 5, 3)],
            [torch.randn(3, 6), torch.randn(2, 9, 5)],
            [torch.tensor([0, 0, 2]), torch.tensor([[0, 1], [0, 0]])],
        )
    ],
    "snapshot": [lambda: ([torch.randn(3, 4), torch.randn(2, 5, 5).half(), torch.empty(0, 2)],)],
    "usv_matmul": [
        lambda: [
            torch.randn(s, requires_grad=True) for s in ((6, 5), (4, 3), (3, 3), (3, 5), (4,))
        ],
        lambda: [
            *(torch.randn(s, requires_grad=True) for s in ((2, 3, 5), (4, 3), (3,), (3, 5))),
            None,
        ],
        lambda: [*(torch.randn(s) for s in ((2, 6, 5), (2, 4, 3), (2, 3, 3), (2, 3, 5))), None],
    ],
    "usv_backward": [
        lambda: [
            *(torch.randn(s) for s in ((2, 3, 4), (2, 3, 5), (4, 3), (3,), (3, 5))),
            [True] * 5,
        ],
        lambda: [
            *(torch.randn(s).half() for s in ((2, 6, 4), (2, 6, 5), (2, 4, 3), (2, 3, 3))),
            torch.randn(2, 3, 5).half(),
            [False, True, False, True, False],
        ],
    ],
}


def test_every_operator_has_cases() -> None:
    assert set(CASES) == set(schemas.SCHEMAS)


@pytest.mark.parametrize(
    ("name", "case"), [(n, i) for n, cases in CASES.items() for i in range(len(cases))]
)
def test_opcheck(name: str, case: int, backend: str) -> None:
    arguments = CASES[name][case]()
    torch.library.opcheck(getattr(OPERATORS, name).default, tuple(arguments))


def test_fake_kernels_know_shapes_and_dtypes() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        A = torch.empty(7, 40, 30, dtype=torch.bfloat16)
        U, S, Vh = sk.svd(A)
        assert (U.shape, S.shape, Vh.shape) == ((7, 40, 30), (7, 30), (7, 30, 30))
        assert U.dtype == S.dtype == Vh.dtype == torch.float32
        assert sk.rsvd(A, 4).Vh.shape == (7, 4, 30)
        assert sk.effective_rank(A).shape == (7,)
        assert sk.usv_matmul(torch.empty(3, 30), *(x[0] for x in sk.decompose(A))).shape == (3, 40)


def test_inside_a_compiled_graph(backend: str) -> None:
    """No graph break: the operators are nodes of the graph."""

    def loss(A: torch.Tensor) -> torch.Tensor:
        return sk.effective_rank(A) + sk.spectral_summary(A).nuclear_norm

    A = torch.randn(8, 6, requires_grad=True)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(A), loss(A))
    (got,) = torch.autograd.grad(compiled(A), A)
    (want,) = torch.autograd.grad(loss(A), A)
    torch.testing.assert_close(got, want)
