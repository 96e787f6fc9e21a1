"""Linear layers and embeddings that train U, Sigma and Vh."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.profiler import ProfilerActivity, profile

import spectral_kernels as sk
from tests.support.tolerances import REORDERED

SHAPES = [(7, 12), (12, 7), (9, 9), (1, 5), (5, 1)]


def linear(m: int, n: int, *, bias: bool = True) -> nn.Linear:
    return nn.Linear(n, m, bias=bias, dtype=torch.float64)


def chain_rule(layer: sk.DecomposedLayer, d_weight: Tensor) -> list[Tensor]:
    """Return dU, dSigma and dVh from the gradient of the weight U Sigma Vh."""
    U, Sigma, Vh = (t.detach() for t in layer.factors())
    return [d_weight @ (Sigma @ Vh).mT, U.mT @ d_weight @ Vh.mT, (U @ Sigma).mT @ d_weight]


def layers() -> Iterator[tuple[sk.DecomposedLayer, Tensor]]:
    yield sk.DecomposedLinear(6, 4, rank=3), torch.randn(5, 6)
    yield sk.DecomposedLinear(6, 4, False, rank=3), torch.randn(5, 6)
    yield sk.DecomposedEmbedding(6, 4, 2, rank=3), torch.tensor([2, 0, 5])


# Ranks.


# The paper's parameter counts.


# Linear: the same function, the chain rule, the best approximation.


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_at_full_rank_is_the_dense_layer(shape: tuple[int, int], bias: bool) -> None:
    dense = linear(*shape, bias=bias)
    layer = sk.DecomposedLinear.from_linear(dense)
    assert layer.rank == min(shape)
    assert layer.shape == shape
    for rows in ((), (4,), (2, 3), (0,), (70,)):
        x, twin = (torch.randn(*rows, shape[1], dtype=torch.float64) for _ in range(2))
        twin.copy_(x)
        y, want = layer(x.requires_grad_()), dense(twin.requires_grad_())
        torch.testing.assert_close(y, want, **REORDERED)
        seed = torch.randn_like(y)
        layer.zero_grad()
        dense.zero_grad()
        y.backward(seed)
        want.backward(seed)
        torch.testing.assert_close(x.grad, twin.grad, **REORDERED)
        for factor, expected in zip(
            layer.factors(), chain_rule(layer, dense.weight.grad), strict=True
        ):
            torch.testing.assert_close(factor.grad, expected, **REORDERED)
        if bias:
            torch.testing.assert_close(layer.bias.grad, dense.bias.grad, **REORDERED)


@pytest.mark.parametrize("rank", [1, 4, 0.5])
def test_linear_is_the_best_approximation(rank: float) -> None:
    dense = linear(9, 14)
    layer = sk.DecomposedLinear.from_linear(dense, rank)
    error = torch.linalg.matrix_norm(dense.weight - layer.weight)
    rest = torch.linalg.svdvals(dense.weight)[layer.rank :]
    torch.testing.assert_close(error, rest.norm(), rtol=1e-10, atol=0)
    x = torch.randn(5, 14, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ layer.weight.mT + dense.bias, **REORDERED)


def test_factors_start_as_an_svd_and_train_without_staying_one() -> None:
    layer = sk.DecomposedLinear(14, 9, rank=5, dtype=torch.float64)
    U, Sigma, Vh = layer.factors()
    torch.testing.assert_close(U.mT @ U, torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(Vh @ Vh.mT, torch.eye(5, dtype=torch.float64))
    assert torch.equal(Sigma, Sigma.diagonal().diag())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(20, 14, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    assert not torch.allclose(Sigma, Sigma.diagonal().diag())


@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_constructors_draw_what_the_dense_layer_draws(kind: str) -> None:
    torch.manual_seed(3)
    dense = nn.Linear(8, 6) if kind == "linear" else nn.Embedding(8, 6, padding_idx=1)
    after = torch.rand(1)
    torch.manual_seed(3)
    layer = sk.DecomposedLinear(8, 6) if kind == "linear" else sk.DecomposedEmbedding(8, 6, 1)
    assert torch.equal(torch.rand(1), after)
    state = torch.get_rng_state()
    torch.testing.assert_close(layer.weight, dense.weight)
    torch.testing.assert_close(layer.to_dense().state_dict(), dense.state_dict())
    layer.smallest()
    assert torch.equal(torch.get_rng_state(), state)


def test_linear_inside_a_dense_attention() -> None:
    attention = nn.MultiheadAttention(8, 2)
    x = torch.randn(3, 2, 8)
    want = attention(x, x, x)[0]
    attention.out_proj = sk.DecomposedLinear.from_linear(attention.out_proj)
    torch.testing.assert_close(attention(x, x, x)[0], want)
    attention(x, x, x)[0].sum().backward()
    assert attention.out_proj.Sigma.grad.abs().sum() > 0


def test_some_outputs_of_a_linear() -> None:
    layer = sk.DecomposedLinear(7, 9, rank=3, dtype=torch.float64)
    x = torch.randn(4, 7, dtype=torch.float64)
    torch.testing.assert_close(layer.outputs(x, 2, 6), layer(x)[:, 2:6], **REORDERED)
    torch.testing.assert_close(layer.outputs(x[0], 0, 9), layer(x[0]), **REORDERED)
    with pytest.raises(ValueError, match="start is 2, stop 10; expected 0 <= start < stop <= 9"):
        layer.outputs(x, 2, 10)


# Embedding.

# Fewer tokens than columns, fewer than rows, and more: each has an order of its own.
IDS = [(3,), (2, 7), (5, 8), (0,), ()]


@pytest.mark.parametrize("padding", [None, 3, -1])
@pytest.mark.parametrize("size", IDS, ids=str)
def test_embedding_at_full_rank_is_the_dense_layer(size: tuple[int, ...], padding: int) -> None:
    dense = nn.Embedding(20, 9, padding_idx=padding, dtype=torch.float64)
    layer = sk.DecomposedEmbedding.from_embedding(dense)
    ids = torch.randint(20, size)
    if padding is not None and ids.numel():
        ids.view(-1)[0] = dense.padding_idx
    y, want = layer(ids), dense(ids)
    torch.testing.assert_close(y, want, **REORDERED)
    seed = torch.randn_like(y)
    y.backward(seed)
    want.backward(seed)
    for factor, expected in zip(layer.factors(), chain_rule(layer, dense.weight.grad), strict=True):
        torch.testing.assert_close(factor.grad, expected, **REORDERED)


@pytest.mark.parametrize("tokens", [4, 15, 60])
def test_a_padded_row_is_zero_and_stays_zero(tokens: int) -> None:
    dense = nn.Embedding(20, 9, padding_idx=3)
    # Of rank 1: the SVD completes U, and may put anything in the row of a zero.
    dense.weight.data.copy_(torch.outer(torch.arange(-3.0, 17.0), torch.ones(9)))
    layer = sk.DecomposedEmbedding.from_embedding(dense)
    assert not layer.U[3].any()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    ids = torch.randint(20, (tokens,))
    ids[::2] = 3
    for _ in range(3):
        optimizer.zero_grad()
        (layer(ids) - 1).square().sum().backward()
        assert not layer.U.grad[3].any()
        optimizer.step()
    assert not layer(ids)[::2].any()
    assert not layer.to_embedding().weight[3].any()


def test_padding_adds_nothing_to_gradients_where_its_row_is_not_zero() -> None:
    layer = sk.DecomposedEmbedding(20, 9, 3)
    layer.U.data[3] = 1
    for tokens in (40, 5):
        layer.zero_grad()
        layer(torch.full((tokens,), 3)).sum().backward()
        assert not layer.U.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_orders_agree_and_round_once(dtype: torch.dtype) -> None:
    layer = sk.DecomposedEmbedding(30, 8, rank=6, dtype=dtype)
    exact = sk.recompose(*(t.detach().double() for t in layer.factors()))
    for ids in (torch.arange(5), torch.arange(20), torch.arange(30).repeat(2)):
        y = layer(ids)
        assert y.dtype == dtype
        # Half a unit in the last place, and float32's own rounding.
        rounding = torch.finfo(dtype).eps * exact[ids].abs() * 0.5 + 1e-6
        assert bool(((y.double() - exact[ids]).abs() <= rounding).all())


# From and to, copies, files.


@pytest.mark.parametrize("trains", [True, False])
def test_round_trip_keeps_what_a_layer_is(trains: bool) -> None:
    for dense, made, back in (
        (nn.Linear(8, 6), sk.DecomposedLinear.from_linear, "to_linear"),
        (nn.Embedding(8, 6, padding_idx=0), sk.DecomposedEmbedding.from_embedding, "to_embedding"),
    ):
        dense.eval().weight.requires_grad_(trains)
        layer = made(dense)
        again = getattr(layer, back)()
        assert type(again) is type(dense)
        assert repr(again) == repr(dense)
        torch.testing.assert_close(again.state_dict(), dense.state_dict())
        assert {p.requires_grad for p in layer.factors()} == {again.weight.requires_grad, trains}
        assert not layer.training
        assert not again.training
        assert again.weight.is_leaf
        # Neither shares memory with the other.
        layer.U.data.zero_()
        assert dense.weight.any()
        assert again.weight.any()


def test_biases_are_copied_and_keep_whether_they_train() -> None:
    dense = nn.Linear(8, 6)
    dense.bias.requires_grad_(False)
    layer = sk.DecomposedLinear.from_linear(dense)
    assert not layer.bias.requires_grad
    assert not layer.to_linear().bias.requires_grad
    dense.bias.data.zero_()
    assert layer.bias.any()
    assert layer.to_linear().weight.requires_grad


@pytest.mark.parametrize("index", range(3))
def test_copies_files_and_devices(index: int) -> None:
    layer, x = list(layers())[index]
    y = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), y)
        assert {p.data_ptr() for p in twin.parameters()}.isdisjoint(
            p.data_ptr() for p in layer.parameters()
        )
    fresh, _ = list(layers())[index]
    assert not torch.equal(fresh(x), y)
    assert fresh.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(fresh(x), y)
    assert {*layer.state_dict()} == {"U", "Sigma", "Vh", *(["bias"] if index == 0 else [])}
    assert {p.dtype for p in layer.to(torch.float64).parameters()} == {torch.float64}
    moved = layer.to("meta")
    assert {p.device.type for p in moved.parameters()} == {"meta"}


def test_state_of_another_rank_is_refused() -> None:
    with pytest.raises(RuntimeError, match="size mismatch for Sigma"):
        sk.DecomposedLinear(6, 4, rank=2).load_state_dict(sk.DecomposedLinear(6, 4).state_dict())


@pytest.mark.parametrize("index", range(3))
def test_smallest_computes_the_same_with_fewer_parameters(index: int) -> None:
    layer, x = list(layers())[index]
    m, n = layer.shape
    for rank in range(1, min(m, n) + 1):
        U, Sigma, Vh = (torch.randn(s) for s in ((m, rank), (rank, rank), (rank, n)))
        if isinstance(layer, sk.DecomposedEmbedding):
            U[layer.padding_idx] = 0
        layer.set_factors(U, Sigma, Vh)
        small = layer.eval().smallest()
        torch.testing.assert_close(small(x), layer(x))
        entries = sum(p.numel() for name, p in small.named_parameters() if "bias" not in name)
        assert entries == min(m * n, rank * (m + n))
        assert not any(module.training for module in small.modules())


def test_set_factors() -> None:
    layer = sk.DecomposedLinear(6, 4, rank=3, dtype=torch.float64)
    U, Sigma, Vh = torch.randn(4, 2), torch.randn(2, 2), torch.randn(2, 6, requires_grad=True)
    layer.set_factors(U, Sigma, Vh)
    assert layer.rank == 2
    assert all(type(p) is nn.Parameter and p.dtype == torch.float64 for p in layer.factors())
    torch.testing.assert_close(layer.weight, (U @ Sigma @ Vh).double())
    with pytest.raises(ValueError, match=r"U is \(4, 2\), Sigma \(2,\), Vh \(2, 6\); expected"):
        layer.set_factors(U, torch.randn(2), Vh)
    with pytest.raises(ValueError, match=r"expected \(4, k\), \(k, k\), \(k, 6\) with k >= 1"):
        layer.set_factors(torch.randn(4, 0), torch.randn(0, 0), torch.randn(0, 6))


def test_weight_is_differentiable_and_cannot_be_set() -> None:
    layer = sk.DecomposedLinear(6, 4, rank=3, dtype=torch.float64)
    seed = torch.randn(4, 6, dtype=torch.float64)
    layer.weight.backward(seed)
    for factor, expected in zip(layer.factors(), chain_rule(layer, seed), strict=True):
        torch.testing.assert_close(factor.grad, expected, **REORDERED)
    with pytest.raises((AttributeError, KeyError), match="weight"):
        layer.weight = nn.Parameter(seed)


# Compilation, autocast, memory.


@pytest.mark.parametrize("index", range(3))
def test_compiles_as_one_graph(index: int) -> None:
    layer, x = list(layers())[index]
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    y = compiled(x)
    torch.testing.assert_close(y, layer(x))
    y.square().sum().backward()
    found = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    layer(x).square().sum().backward()
    torch.testing.assert_close(found, [p.grad for p in layer.parameters()])


@pytest.mark.parametrize("index", range(3))
def test_autocast_gives_the_dtypes_of_the_dense_layer(index: int) -> None:
    layer, x = list(layers())[index]
    layer.set_factors(*(torch.randn_like(t) for t in layer.factors()))
    dense = layer.to_dense()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, want, weight = layer(x), dense(x), layer.weight
        if index < 2:
            assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert y.dtype == want.dtype
    # bfloat16 has 8 bits: the entries of the product of three factors are rounded once each.
    tolerance = 0.0 if y.dtype == torch.float32 else 0.05 * want.float().abs().max().item()
    torch.testing.assert_close(y, want, rtol=1e-5, atol=max(tolerance, 1e-5))
    torch.testing.assert_close(weight, dense.weight)
    y.float().sum().backward()
    assert {p.grad.dtype for p in layer.parameters()} == {torch.float32}


@pytest.mark.parametrize("index", range(3))
def test_data_parallel(index: int, tmp_path: Path) -> None:
    layer, x = list(layers())[index]
    layer(x).square().sum().backward()
    want = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad(set_to_none=True)
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        nn.parallel.DistributedDataParallel(layer)(x).square().sum().backward()
    finally:
        distributed.destroy_process_group()
    torch.testing.assert_close([p.grad for p in layer.parameters()], want)


@pytest.mark.parametrize(("m", "n", "p"), [(1024, 1280, 8), (1280, 1024, 8), (64, 4096, 100)])
def test_the_matrix_is_formed_neither_forward_nor_backward(m: int, n: int, p: int) -> None:
    layer = sk.DecomposedLinear.from_linear(nn.Linear(n, m), 4)
    found = allocations(layer, p, n)
    # The largest: x, y or a factor, or a gradient of one.
    assert max(found) <= 4 * max(p * n, p * m, 4 * n, 4 * m)
    assert 4 * m * n not in found
    assert 4 * m * n in allocations(nn.Linear(n, m), p, n)


def allocations(layer: nn.Module, p: int, n: int) -> list[int]:
    """Return the bytes of everything that forward and backward allocate."""
    x = torch.randn(p, n, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        layer(x).sum().backward()
    events = profiler.profiler.kineto_results.events()
    return [e.nbytes() for e in events if e.name() == "[memory]" and e.nbytes() > 0]


# What is refused.


def test_they_tell_their_sizes() -> None:
    assert repr(sk.DecomposedLinear(8, 6, False, rank=0.5)) == (
        "DecomposedLinear(in_features=8, out_features=6, rank=3, bias=False)"
    )
    assert repr(sk.DecomposedEmbedding(8, 6, 1)) == (
        "DecomposedEmbedding(8, 6, rank=6, padding_idx=1)"
    )


def test_an_exported_embedding_runs_at_every_size() -> None:
    layer = sk.DecomposedEmbedding(20, 8, rank=3)
    batch = {0: torch.export.Dim("batch")}
    ids = torch.arange(12).reshape(3, 4)
    program = torch.export.export(layer, (ids,), dynamic_shapes=(batch,)).module()
    # Fewer ids than columns of the table, as many as its rows.
    for count in (1, 2, 3, 9):
        ids = torch.arange(4 * count).reshape(count, 4) % 20
        torch.testing.assert_close(program(ids), layer(ids))


def test_autocast_casts_no_integers() -> None:
    layer = sk.DecomposedLinear(5, 4)
    with torch.autocast("cpu"), pytest.raises(ValueError, match=r"x is torch.int64; expected"):
        layer(torch.ones(3, 5, dtype=torch.int64))
