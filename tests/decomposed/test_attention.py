"""Attention with decomposed projections: the results of nn.MultiheadAttention."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings

import pytest
import torch
from spectral_monitor.decomposed.layers.attention import DecomposedMultiheadAttention
from spectral_monitor.decomposed.layers.linear import DecomposedLinear
from torch import Tensor, nn

from tests.support.attentions import HEADS, D, L, N, Operations, S
from tests.support.tolerances import REORDERED

KINDS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "bias of keys and values": {"add_bias_kv": True},
    "zero key": {"add_zero_attn": True, "batch_first": True},
    "both appended": {"add_bias_kv": True, "add_zero_attn": True},
    "own sizes": {"kdim": 3, "vdim": 7},
    "own sizes, no bias": {"kdim": 3, "vdim": D, "bias": False, "batch_first": True},
    "dropout": {"dropout": 0.4, "batch_first": True},
}


def pair(rank: object = None, **options: object):
    """Return a dense attention, biases not zero, and its decomposition."""
    dense = nn.MultiheadAttention(D, HEADS, dtype=torch.float64, **options)
    for parameter in dense.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    return dense, DecomposedMultiheadAttention.from_attention(dense, rank)


def inputs(layer: nn.MultiheadAttention, sources: str, batched: bool = True) -> list[Tensor]:
    """Return query, key and value: "one" tensor, one "memory" for the last two, or "three"."""

    def draw(length: int, size: int) -> Tensor:
        x = torch.randn(N, length, size, dtype=torch.float64)
        return x[0] if not batched else x if layer.batch_first else x.transpose(0, 1)

    query = draw(S if sources == "one" else L, D)
    if sources == "one":
        return [query, query, query]
    key = draw(S, layer.kdim)
    return [query, key, key if sources == "memory" else draw(S, layer.vdim)]


def sources_of(layer: nn.MultiheadAttention) -> list[str]:
    return ["one", "memory", "three"] if layer.kdim == layer.vdim == D else ["three"]


def same_calls(dense: nn.Module, layer: nn.Module, given: list[Tensor], **options: object) -> None:
    """Check outputs, weights and gradients of the inputs, with the same random numbers."""
    results = []
    for module in (dense, layer):
        # One leaf for each different tensor, so that "is" holds where it held.
        leaves = {id(x): x.detach().clone().requires_grad_() for x in given}
        torch.manual_seed(5)
        y, weights = module(*(leaves[id(x)] for x in given), **options)
        y.square().sum().backward()
        results.append((y.detach(), weights, [leaf.grad for leaf in leaves.values()]))
    (y, weights, grads), (y_own, weights_own, grads_own) = results
    assert y.shape == y_own.shape
    torch.testing.assert_close(y_own, y, equal_nan=True, **REORDERED)
    torch.testing.assert_close(grads_own, grads, equal_nan=True, **REORDERED)
    assert (weights is None) == (weights_own is None)
    if weights is not None:
        torch.testing.assert_close(weights_own, weights, equal_nan=True, **REORDERED)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_full_rank_is_the_dense_layer(kind: str, need_weights: bool, training: bool) -> None:
    dense, layer = pair(**KINDS[kind])
    dense.train(training)
    layer.train(training)
    for sources, batched in itertools.product(sources_of(dense), (True, False)):
        given = inputs(dense, sources, batched)
        same_calls(dense, layer, given, need_weights=need_weights)
        same_calls(dense, layer, given, need_weights=need_weights, average_attn_weights=False)


def masks(shape: tuple[int, ...], form: str) -> Tensor:
    hidden = torch.rand(shape) < 0.3
    # The first key stays, or a row of nothing would make everything NaN.
    hidden[..., 0] = False
    if form == "bool":
        return hidden
    return torch.randn(shape, dtype=torch.float64).masked_fill(hidden, -torch.inf)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("form", ["bool", "float"])
@pytest.mark.parametrize("kind", ["plain", "batch first", "both appended", "own sizes"])
def test_masks(kind: str, form: str, need_weights: bool) -> None:
    dense, layer = pair(**KINDS[kind])
    given = inputs(dense, "three")
    for attn in (None, (L, S), (N * HEADS, L, S)):
        for padding in (None, (N, S)):
            same_calls(
                dense,
                layer,
                given,
                need_weights=need_weights,
                attn_mask=None if attn is None else masks(attn, form),
                key_padding_mask=None if padding is None else masks(padding, form),
            )
    alone = inputs(dense, "three", batched=False)
    same_calls(
        dense,
        layer,
        alone,
        need_weights=need_weights,
        attn_mask=masks((HEADS, L, S), form),
        key_padding_mask=masks((S,), form),
    )


def test_masks_of_two_forms() -> None:
    dense, layer = pair()
    given = inputs(dense, "three")
    options = {"attn_mask": masks((L, S), "float"), "key_padding_mask": masks((N, S), "bool")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        same_calls(dense, layer, given, **options)


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_query_that_sees_no_key(need_weights: bool) -> None:
    dense, layer = pair()
    given = inputs(dense, "three")
    hidden = torch.zeros(L, S, dtype=torch.bool)
    hidden[1] = True
    y = dense(*given, attn_mask=hidden, need_weights=need_weights)[0]
    own = layer(*given, attn_mask=hidden, need_weights=need_weights)[0]
    torch.testing.assert_close(own, y, equal_nan=True, **REORDERED)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_causal(need_weights: bool, padded: bool) -> None:
    dense, layer = pair(batch_first=True)
    given = inputs(dense, "one")
    mask = nn.Transformer.generate_square_subsequent_mask(S, dtype=torch.float64)
    padding = masks((N, S), "float") if padded else None
    options = {"attn_mask": mask, "is_causal": True, "need_weights": need_weights}
    same_calls(dense, layer, given, key_padding_mask=padding, **options)


def test_the_hint_does_not_hide_appended_keys() -> None:
    # torch's own layer applies the hint to them as well, and no query sees them then.
    _, layer = pair(add_bias_kv=True, add_zero_attn=True, batch_first=True)
    x = torch.randn(N, S, D, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(S, dtype=torch.float64)
    with_hint = layer(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)[0]
    torch.testing.assert_close(with_hint, layer(x, x, x, attn_mask=mask)[0], **REORDERED)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_factors_are_the_chain_rule(kind: str) -> None:
    dense, layer = pair(**KINDS[kind])
    dense.eval()
    layer.eval()
    given = inputs(dense, "three")
    for module in (dense, layer):
        module(*given)[0].square().sum().backward()
    for name, child in layer.named_children():
        assert isinstance(child, DecomposedLinear)
        weight = dense.out_proj.weight if name == "out_proj" else getattr(dense, f"{name}_weight")
        U, Sigma, Vh = (t.detach() for t in child.factors())
        expected = [
            weight.grad @ (Sigma @ Vh).mT,
            U.mT @ weight.grad @ Vh.mT,
            (U @ Sigma).mT @ weight.grad,
        ]
        found = [t.grad for t in child.factors()]
        torch.testing.assert_close(found, expected, **REORDERED)
    if dense.in_proj_bias is not None:
        names = ("in_proj",) if layer.in_proj_weight is not None else ("q_proj", "k_proj", "v_proj")
        biases = torch.cat([getattr(layer, name).bias.grad for name in names])
        torch.testing.assert_close(biases, dense.in_proj_bias.grad, **REORDERED)


@pytest.mark.parametrize("rank", [2, 0.5, "break-even"])
@pytest.mark.parametrize("kind", KINDS)
def test_lower_ranks_round_trip(kind: str, rank: object) -> None:
    dense, layer = pair(rank, **KINDS[kind])
    dense.eval()
    layer.eval()
    again = layer.to_attention()
    assert not again.training
    torch.testing.assert_close(
        layer.out_proj.weight, DecomposedLinear.from_linear(dense.out_proj, rank).weight
    )
    same_calls(again, layer, inputs(dense, "three"))
    full = DecomposedMultiheadAttention.from_attention(dense).to_attention()
    assert {*full.state_dict()} == {*dense.state_dict()}
    torch.testing.assert_close(full.state_dict(), dense.state_dict())


def test_what_trains_stays_what_trains() -> None:
    dense, _ = pair(add_bias_kv=True)
    dense.in_proj_weight.requires_grad_(False)
    dense.bias_k.requires_grad_(False)
    layer = DecomposedMultiheadAttention.from_attention(dense)
    trained = {name for name, p in layer.named_parameters() if not p.requires_grad}
    assert trained == {"in_proj.U", "in_proj.Sigma", "in_proj.Vh", "bias_k"}
    with torch.no_grad():
        again = layer.to_attention()
    assert {n for n, p in again.named_parameters() if not p.requires_grad} == {
        "in_proj_weight",
        "bias_k",
    }


def test_constructor_draws_what_the_dense_layer_draws() -> None:
    torch.manual_seed(3)
    dense = nn.MultiheadAttention(D, HEADS, 0.1, True, True, False, 3, 5, True)
    after = torch.rand(1)
    torch.manual_seed(3)
    layer = DecomposedMultiheadAttention(D, HEADS, 0.1, True, True, False, 3, 5, True)
    assert torch.equal(torch.rand(1), after)
    torch.testing.assert_close(layer.to_attention().state_dict(), dense.state_dict())
    assert repr(layer).startswith("DecomposedMultiheadAttention(\n  embed_dim=8, num_heads=4")


def test_the_paper_fuses_the_input_projection() -> None:
    # Figure 5: width 128, rank 16 for a projection from 128 to 384 and one from 128 to 128.
    layer = DecomposedMultiheadAttention(128, 4, bias=False, rank=16)
    assert [tuple(p.shape) for p in layer.parameters()] == [
        *[(384, 16), (16, 16), (16, 128)],
        *[(128, 16), (16, 16), (16, 128)],
    ]


def test_copies_and_files() -> None:
    layer = DecomposedMultiheadAttention(D, HEADS, rank=3, add_bias_kv=True)
    x = torch.randn(L, N, D)
    y = layer(x, x, x)[0]
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x, x, x)[0], y)
    fresh = DecomposedMultiheadAttention(D, HEADS, rank=3, add_bias_kv=True)
    fresh.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(fresh(x, x, x)[0], y)


@pytest.mark.parametrize("need_weights", [True, False])
def test_compiles_as_one_graph(need_weights: bool) -> None:
    layer = DecomposedMultiheadAttention(D, HEADS, rank=3, batch_first=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x, memory = torch.randn(N, L, D), torch.randn(N, S, D)
    for given in ((x, x, x), (x, memory, memory)):
        found = compiled(*given, need_weights=need_weights)
        torch.testing.assert_close(found, layer(*given, need_weights=need_weights))
        found[0].sum().backward()


@pytest.mark.parametrize("need_weights", [True, False])
def test_autocast(need_weights: bool) -> None:
    layer = DecomposedMultiheadAttention(D, HEADS, batch_first=True)
    dense = layer.to_attention()
    x = torch.randn(N, L, D)
    mask = nn.Transformer.generate_square_subsequent_mask(L)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, weights = layer(x, x, x, need_weights=need_weights, attn_mask=mask)
        want, want_weights = dense(x, x, x, need_weights=need_weights, attn_mask=mask)
    assert y.dtype == want.dtype
    torch.testing.assert_close(y, want, rtol=0, atol=0.03)
    if need_weights:
        torch.testing.assert_close(weights.float(), want_weights.float(), rtol=0, atol=0.03)
    y.float().sum().backward()
    assert {p.grad.dtype for p in layer.parameters()} == {torch.float32}


# Inside torch's own layers.


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sources", ["one", "memory", "three"])
def test_no_weight_is_formed(sources: str, training: bool) -> None:
    dense, layer = pair(2)
    given = inputs(dense, sources)
    weights = {(3 * D, D), (2 * D, D), (D, D), (D, 3 * D), (D, 2 * D)}
    with Operations() as seen:
        layer.train(training)(*given, need_weights=False)[0].sum().backward()
    # As few products as there are different inputs, and one for the output.
    products = {"one": 2, "memory": 3, "three": 4}[sources]
    assert seen.names["spectral_kernels::usv_matmul"] == products
    assert not weights & seen.shapes
    with Operations() as seen:
        dense(*given)[0].sum().backward()
    assert weights & seen.shapes


# What is refused.


class Louder(nn.MultiheadAttention):
    def forward(self, *arguments, **options):
        return super().forward(*arguments, **options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Linear(4, 4), TypeError, r"Linear; expected nn\.MultiheadAttention"),
        (lambda: Louder(4, 2), TypeError, "Louder, which has a forward of its own"),
        (
            lambda: nn.MultiheadAttention(4, 2, device="meta"),
            ValueError,
            "in_proj_weight .* is on the meta device",
        ),
    ],
)
def test_layers_that_are_refused(make, error: type[Exception], message: str) -> None:
    layer = make()
    with pytest.raises(error, match=message):
        DecomposedMultiheadAttention.from_attention(layer)


def test_a_hook_on_the_output_projection_is_not_lost() -> None:
    dense, _ = pair()
    dense.out_proj.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="NonDynamicallyQuantizableLinear, has hooks"):
        DecomposedMultiheadAttention.from_attention(dense)


def test_calls_that_are_refused() -> None:
    layer = DecomposedMultiheadAttention(D, HEADS)
    x = torch.randn(L, N, D)
    with pytest.raises(ValueError, match="is_causal is given without attn_mask"):
        layer(x, x, x, is_causal=True)
    with pytest.raises(ValueError, match=r"attn_mask is \(5, 4\); expected \(5, 5\) or \(12, 5,"):
        layer(x, x, x, attn_mask=torch.zeros(L, 4))
    with pytest.raises(ValueError, match=r"key_padding_mask is \(5, 3\); expected \(3, 5\)"):
        layer(x, x, x, key_padding_mask=torch.zeros(L, N))
    with pytest.raises(TypeError, match=r"attn_mask has dtype torch\.int64; expected bool"):
        layer(x, x, x, attn_mask=torch.zeros(L, L, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"query is \(5, 3, 8\), key \(3, 8\), value \(5, 3, 8\)"):
        layer(x, x[0], x)
    with pytest.raises(ValueError, match=r"key \(5, 3, 8\), value \(4, 3, 8\); expected"):
        layer(x, x, x[1:])
    with pytest.raises(ValueError, match=r"x is \(5, 3, 7\); expected \(..., 8\)"):
        layer(x, x[..., :7], x[..., :7])
    with pytest.raises(ValueError, match=r"query is \(5, 2, 8\), .* expected \(L, N, d\), \(S, N,"):
        layer(x[:, :2], x, x)
    nested = torch.nested.nested_tensor([torch.randn(2, D), torch.randn(3, D)])
    with pytest.raises(ValueError, match="is a nested tensor"):
        layer(nested, nested, nested)
    with pytest.raises(ValueError, match="rank is 9; expected 1 <= rank"):
        DecomposedMultiheadAttention(D, HEADS, rank=9)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("kind", ["plain", "batch first", "both appended", "own sizes"])
def test_nothing_to_attend_from(kind: str, need_weights: bool) -> None:
    dense, decomposed = pair(**KINDS[kind])
    for shape in ((0, N), (L, 0), (0, 0)):
        q, k, v = (
            torch.zeros(*shape, size, dtype=torch.float64)
            for size in (D, KINDS[kind].get("kdim", D), KINDS[kind].get("vdim", D))
        )
        expected = dense(q, k, v, need_weights=need_weights)
        found = decomposed(q, k, v, need_weights=need_weights)
        torch.testing.assert_close(found, expected, equal_nan=True)
