"""Heads of attentions: which of their singular vectors meet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.named_models import Named
from tests.support.paired import attention, check, diagonal, keys, parameter, svd, watch


def by_head(
    first: Tensor, second: Tensor, heads: int, *, columns: bool = False, share: int = 1
) -> np.ndarray:
    """The mean over heads of |U^T U'| (or |U^T V'|) of blocks with SVDs of their own."""
    size = (second.shape[1] if columns else first.shape[0]) // heads
    meetings = []
    for head in range(heads):
        one, own = slice(head * size, (head + 1) * size), head // share * size
        U, _ = svd(first[own : own + size] if columns else first[one])
        other, Vh = svd(second[:, one] if columns else second[own : own + size])
        meetings.append(np.abs(diagonal(U, Vh if columns else other.T)))
    return np.mean(meetings, axis=0)


def test_fused_attention_has_an_svd_of_every_head() -> None:
    model = nn.TransformerEncoderLayer(8, 2, dim_feedforward=12)
    fused, out = "self_attn.in_proj_weight", "self_attn.out_proj.weight"
    expected = [
        (f"{fused}[q]", f"{fused}[k]"),
        (f"{fused}[v]", out),
        (f"{fused}[v, by head]", f"{out}[by head]"),
        (out, "linear1.weight"),
        ("linear1.weight", "linear2.weight"),
    ]
    assert keys(model) == expected
    W, W_o = model.self_attn.in_proj_weight, model.self_attn.out_proj.weight
    check(model, expected[0], by_head(W[:8], W[8:16], 2))
    (U, _), (_, Vh) = svd(W[16:]), svd(W_o)
    check(model, expected[1], diagonal(U, Vh))
    check(model, expected[2], by_head(W[16:], W_o, 2, columns=True))


@pytest.mark.parametrize("fused", [False, True])
def test_an_alignment_planted_in_every_head_is_one(fused: bool) -> None:
    """Rows cut out of the vectors of the whole gave 0.073 and 0.021 here."""
    d, heads = 128, 4
    size = d // heads
    torch.manual_seed(0)

    def block(U: Tensor) -> Tensor:
        V = torch.linalg.qr(torch.randn(d, size, dtype=torch.float64)).Q
        return (U * torch.linspace(2, 1, size, dtype=torch.float64)) @ V.mT

    bases = [
        torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q for _ in range(2 * heads)
    ]
    Q, K, V = (torch.cat([block(U) for U in bases[i : i + heads]]) for i in (0, 0, heads))
    W_o = torch.cat([block(U).mT for U in bases[heads:]], dim=1)
    if fused:
        model: nn.Module = nn.MultiheadAttention(d, heads, dtype=torch.float64)
        weights, out = [(model.in_proj_weight, torch.cat([Q, K, V]))], model.out_proj.weight
    else:
        model = Named(**{f"{r}_proj": nn.Linear(d, d, dtype=torch.float64) for r in "qkvo"})
        model.num_heads = heads
        projections = [model.q_proj.weight, model.k_proj.weight, model.v_proj.weight]
        weights, out = list(zip(projections, (Q, K, V), strict=True)), model.o_proj.weight
    with torch.no_grad():
        for parameter, value in [*weights, (out, W_o)]:
            parameter.copy_(value)
    frame = watch(model).step()
    assert frame is not None
    qk, whole, per_head = frame.alignment.values()
    np.testing.assert_allclose(qk, 1, atol=1e-10)
    np.testing.assert_allclose(per_head, 1, atol=1e-10)
    assert len(qk) == size
    # Of the whole matrices the heads' directions are in another order on the two sides.
    assert len(whole) == 100


def test_separate_projections_by_head() -> None:
    model = attention()
    assert keys(model) == [
        ("attn.q_proj.weight", "attn.k_proj.weight"),
        ("attn.v_proj.weight", "attn.o_proj.weight"),
        ("attn.v_proj.weight[by head]", "attn.o_proj.weight[by head]"),
        ("attn.o_proj.weight", "up.weight"),
    ]
    q, k, v, o = (getattr(model.attn, f"{role}_proj").weight for role in "qkvo")
    check(model, keys(model)[0], by_head(q, k, 2))
    (U, _), (_, Vh) = svd(v), svd(o)
    check(model, keys(model)[1], diagonal(U, Vh))
    check(model, keys(model)[2], by_head(v, o, 2, columns=True))


def test_grouped_queries_share_keys() -> None:
    model = attention(heads=4, kv=4)
    found = watch(model)
    q, k, v, o = (getattr(model.attn, f"{role}_proj").weight for role in "qkvo")
    assert [pair.key for pair in found.pairs][:2] == [
        ("attn.q_proj.weight", "attn.k_proj.weight"),
        ("attn.v_proj.weight[by head]", "attn.o_proj.weight[by head]"),
    ]
    assert [(a.label, b.label) for a, b in found.pairs[0].meetings] == [
        (f"attn.q_proj.weight[head {h}]", f"attn.k_proj.weight[head {h // 2}]") for h in range(4)
    ]
    check(model, found.pairs[0].key, by_head(q, k, 4, share=2))
    check(model, found.pairs[1].key, by_head(v, o, 4, columns=True, share=2))
    # Whole, 4 rows of values do not chain with 8 columns of the output.
    assert "4 heads of the output read 2 of the values" in found.explain()


def test_heads_are_taken_from_the_option() -> None:
    model = attention(heads=None)
    whole = keys(model)
    assert whole[0] == ("attn.q_proj.weight", "attn.k_proj.weight")
    assert len(watch(model, heads=4).pairs[0].meetings) == 4
    assert len(watch(model, heads={"attn.*": 2}).pairs[0].meetings) == 2
    with pytest.raises(ValueError, match="heads: the pattern 'attention"):
        keys(model, heads={"attention.*": 2})
    with pytest.raises(ValueError, match="positive whole"):
        keys(model, heads=0)
    uneven = watch(model, heads=3)
    assert "has 8 rows, not a multiple of 3 heads" in uneven.explain()


def test_heads_as_leading_dimension_of_plain_parameters() -> None:
    model = Named(
        W_Q=parameter(2, 4, 8), W_K=parameter(2, 4, 8), W_V=parameter(2, 4, 8),
        W_O=parameter(8, 8), W_in=parameter(12, 8), W_out=parameter(8, 12),
    )  # fmt: skip
    model.num_heads = 2
    assert keys(model) == [
        ("W_Q", "W_K"),
        ("W_V", "W_O"),
        ("W_V[by head]", "W_O[by head]"),
        ("W_O", "W_in"),
        ("W_in", "W_out"),
    ]
    check(model, ("W_Q", "W_K"), by_head(model.W_Q.flatten(0, 1), model.W_K.flatten(0, 1), 2))
    V = model.W_V.flatten(0, 1)
    (U, _), (_, Vh) = svd(V), svd(model.W_O)
    check(model, ("W_V", "W_O"), diagonal(U, Vh))
    check(model, ("W_V[by head]", "W_O[by head]"), by_head(V, model.W_O, 2, columns=True))


def test_a_single_head_can_be_asked_for() -> None:
    model = attention()
    q, k = "attn.q_proj.weight", "attn.k_proj.weight"
    W_q, W_k = model.attn.q_proj.weight, model.attn.k_proj.weight
    for rows, other in ((slice(4, 8), slice(4, 8)), (slice(0, 4), slice(4, 8))):
        key = f"{q}[head {rows.start // 4}]", f"{k}[head {other.start // 4}]"
        found = watch(model.double(), pairs=[key])
        assert [(p.key, len(p.meetings), p.origin) for p in found.pairs] == [(key, 1, "given")]
        assert [part.name for part in found.parts] == list(key)
        frame = found.step()
        assert frame is not None
        (U, _), (other_U, _) = svd(W_q[rows]), svd(W_k[other])
        expected = np.abs(diagonal(U, other_U.T))
        np.testing.assert_allclose(frame.alignment[key], expected, atol=1e-9)


def test_blocks_of_a_fused_weight_can_be_asked_for() -> None:
    model = Named(embed=nn.Embedding(9, 8), attn=nn.MultiheadAttention(8, 2))
    fused = "attn.in_proj_weight"
    assert keys(model)[0] == ("embed.weight", fused)
    for label, rows in (("v", slice(16, 24)), ("q", slice(0, 8)), ("k, head 1", slice(12, 16))):
        key = ("embed.weight", f"{fused}[{label}]")
        frame = watch(model.double(), pairs=[key]).step()
        assert frame is not None
        (_, Vh), (_, next_Vh) = svd(model.embed.weight), svd(model.attn.in_proj_weight[rows])
        np.testing.assert_allclose(frame.alignment[key], np.abs(diagonal(Vh.T, next_Vh)), atol=1e-9)
    # The names of the papers' code.
    assert keys(model, pairs=[(fused, fused)]) == [(f"{fused}[q]", f"{fused}[k]")]
    assert keys(model, pairs=[(fused, "attn.out_proj.weight")]) == keys(model)[2:]
