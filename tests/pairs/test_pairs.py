"""Which layers feed which, and which singular vectors meet."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from torch import Tensor, nn

from tests.support.named_models import Named


def watch(model: nn.Module, **options: object) -> SpectralMonitor:
    return SpectralMonitor(model, reference=None, **options)  # type: ignore[arg-type]


def keys(model: nn.Module, **options: object) -> list[tuple[str, str]]:
    return [pair.key for pair in watch(model, **options).pairs]


def svd(A: Tensor) -> tuple[np.ndarray, np.ndarray]:
    U, _, Vh = np.linalg.svd(A.detach().double().numpy(), full_matrices=False)
    return U, Vh


def check(model: nn.Module, key: tuple[str, str], expected: np.ndarray) -> None:
    """Hold one recorded diagonal against |U^T V'| of NumPy's vectors, float64."""
    model.double()
    frame = watch(model).step()
    assert frame is not None
    np.testing.assert_allclose(frame.alignment[key], np.abs(expected), atol=1e-9)


def diagonal(U: np.ndarray, Vh: np.ndarray) -> np.ndarray:
    return np.diagonal(U.T @ Vh.T)[:100]


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def test_a_chain_of_linear_layers() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Linear(3, 2))
    found = watch(model)
    assert [pair.key for pair in found.pairs] == [("0.weight", "2.weight")]
    (rejected,) = found.rejected_pairs
    assert (rejected.first, rejected.second) == ("2.weight", "3.weight")
    for words in ("(5, 6) gives 5 outputs", "(2, 3) takes 3 inputs"):
        assert words in rejected.reason
        assert words in found.explain()
    (U, _), (_, Vh) = svd(model[0].weight), svd(model[2].weight)
    check(model, ("0.weight", "2.weight"), diagonal(U, Vh))


def test_embeddings_use_their_columns_and_positions_join_them() -> None:
    model = Named(
        tok=nn.Embedding(9, 4), pos=nn.Embedding(5, 4), fc=nn.Linear(4, 6), out=nn.Linear(6, 9)
    )
    assert keys(model) == [
        ("tok.weight", "fc.weight"),
        ("pos.weight", "fc.weight"),
        ("fc.weight", "out.weight"),
    ]
    (_, Vh), (_, next_Vh) = svd(model.tok.weight), svd(model.fc.weight)
    check(model, ("tok.weight", "fc.weight"), diagonal(Vh.T, next_Vh))


def test_convolutions_align_with_the_centre_tap() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, (3, 5)))
    assert keys(model) == [("0.weight", "2.weight")]
    U, _ = svd(model[0].weight.flatten(1))
    _, Vh = svd(model[2].weight.flatten(1))
    centre = Vh.reshape(-1, 6, 3, 5)[:, :, 1, 2]
    check(model, ("0.weight", "2.weight"), diagonal(U, centre))


def test_transposed_convolutions_chain_too() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 5, 4), nn.Conv2d(5, 2, 1))
    U, _ = svd(model[0].weight.transpose(0, 1).flatten(1))
    _, Vh = svd(model[1].weight.flatten(1))
    check(model, ("0.weight", "1.weight"), diagonal(U, Vh))


def test_groups_meet_where_they_share_channels() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 2, 1))
    assert keys(model) == [
        ("0.weight[outputs 0:2]", "1.weight[group 0]"),
        ("0.weight[outputs 2:4]", "1.weight[group 1]"),
        ("1.weight[group 0]", "2.weight[inputs 0:4]"),
        ("1.weight[group 1]", "2.weight[inputs 4:8]"),
    ]
    # Outputs of one group alone are decomposed on their own, and so are its inputs.
    U, _ = svd(model[0].weight[2:4].flatten(1))
    _, Vh = svd(model[1].weight[4:].flatten(1))
    centre = Vh.reshape(-1, 2, 9)[:, :, 4]
    check(model, ("0.weight[outputs 2:4]", "1.weight[group 1]"), diagonal(U, centre))
    U, _ = svd(model[1].weight[4:].flatten(1))
    _, Vh = svd(model[2].weight[:, 4:].flatten(1))
    check(model, ("1.weight[group 1]", "2.weight[inputs 4:8]"), diagonal(U, Vh))


def test_narrowed_kernels_keep_their_centre() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 1, groups=2), nn.Conv2d(6, 4, (3, 5)))
    U, _ = svd(model[0].weight[3:].flatten(1))
    _, Vh = svd(model[1].weight[:, 3:].flatten(1))
    centre = Vh.reshape(-1, 3, 3, 5)[:, :, 1, 2]
    check(model, ("0.weight[group 1]", "1.weight[inputs 3:6]"), diagonal(U, centre))


def test_groups_that_share_no_channel_are_no_pair() -> None:
    model = nn.Sequential(nn.Conv1d(4, 4, 3, groups=2), nn.Conv1d(4, 4, 3, groups=2))
    assert keys(model) == [
        ("0.weight[group 0]", "1.weight[group 0]"),
        ("0.weight[group 1]", "1.weight[group 1]"),
    ]


def test_an_lstm_uses_the_rows_of_its_cell_gate() -> None:
    model = Named(lstm=nn.LSTM(3, 5, num_layers=2), out=nn.Linear(5, 4))
    g = "[gate g]"
    assert keys(model) == [
        (f"lstm.weight_ih_l0{g}", "lstm.weight_hh_l0"),
        (f"lstm.weight_ih_l1{g}", "lstm.weight_hh_l1"),
        (f"lstm.weight_ih_l0{g}", "lstm.weight_ih_l1"),
        (f"lstm.weight_hh_l0{g}", "lstm.weight_ih_l1"),
        (f"lstm.weight_ih_l1{g}", "out.weight"),
        (f"lstm.weight_hh_l1{g}", "out.weight"),
    ]
    U, _ = svd(model.lstm.weight_ih_l0)
    _, Vh = svd(model.lstm.weight_hh_l0)
    check(model, (f"lstm.weight_ih_l0{g}", "lstm.weight_hh_l0"), diagonal(U[10:15], Vh))


def test_directions_of_an_lstm_meet_halves_of_the_next_input() -> None:
    """The next matrix is cut in half before its SVD, and a direction feeds the same one alone."""
    model = Named(lstm=nn.LSTM(3, 5, num_layers=2, bidirectional=True), out=nn.Linear(10, 4))
    g, directions = "[gate g]", (("", "[inputs 0:5]"), ("_reverse", "[inputs 5:10]"))
    assert set(keys(model)) == {
        pair
        for way, half in directions
        for pair in (
            (f"lstm.weight_ih_l0{way}{g}", f"lstm.weight_hh_l0{way}"),
            (f"lstm.weight_ih_l1{way}{g}", f"lstm.weight_hh_l1{way}"),
            *(
                pair
                for role in ("ih", "hh")
                for pair in (
                    (f"lstm.weight_{role}_l0{way}{g}", f"lstm.weight_ih_l1{way}{half}"),
                    (f"lstm.weight_{role}_l1{way}{g}", f"out.weight{half}"),
                )
            ),
        )
    }
    U, _ = svd(model.lstm.weight_hh_l0_reverse)
    _, Vh = svd(model.lstm.weight_ih_l1_reverse[:, 5:])
    key = (f"lstm.weight_hh_l0_reverse{g}", "lstm.weight_ih_l1_reverse[inputs 5:10]")
    check(model, key, diagonal(U[10:15], Vh))
    U, _ = svd(model.lstm.weight_ih_l1)
    _, Vh = svd(model.out.weight[:, :5])
    check(model, (f"lstm.weight_ih_l1{g}", "out.weight[inputs 0:5]"), diagonal(U[10:15], Vh))


def test_directions_of_one_recurrent_module_feed_those_of_the_next() -> None:
    model = Named(one=nn.GRU(3, 5, bidirectional=True), two=nn.GRU(10, 4, bidirectional=True))
    between = [(a, b) for a, b in keys(model) if a.startswith("one") and b.startswith("two")]
    assert between == [
        (f"one.weight_{role}_l0{way}[gate n]", f"two.weight_ih_l0{way}[inputs {half}]")
        for way, half in (("", "0:5"), ("_reverse", "5:10"))
        for role in ("ih", "hh")
    ]


def test_a_projected_lstm_returns_through_its_projection() -> None:
    assert set(keys(Named(lstm=nn.LSTM(3, 5, proj_size=2), out=nn.Linear(2, 4)))) == {
        ("lstm.weight_ih_l0[gate g]", "lstm.weight_hr_l0"),
        ("lstm.weight_hh_l0[gate g]", "lstm.weight_hr_l0"),
        ("lstm.weight_hr_l0", "lstm.weight_hh_l0"),
        ("lstm.weight_hr_l0", "out.weight"),
    }


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


def test_blocks_follow_each_other() -> None:
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 12), num_layers=2, enable_nested_tensor=False
    )
    assert ("layers.0.linear2.weight", "layers.1.self_attn.in_proj_weight") in keys(model)


def test_an_encoder_does_not_feed_the_decoders_tokens() -> None:
    model = nn.Transformer(8, 2, 1, 1, 12)
    found = keys(model)
    assert not any(
        a.startswith("encoder") and b.startswith("decoder.layers.0.self_attn") for a, b in found
    )
    assert "decoder reads its own tokens" in watch(model).explain()
    # Queries of the cross attention read the decoder, keys and values the encoder.
    cross = "decoder.layers.0.multihead_attn.in_proj_weight"
    assert [(a, b) for a, b in found if b.startswith(cross) and not a.startswith(cross)] == [
        ("decoder.layers.0.self_attn.out_proj.weight", f"{cross}[q]"),
        ("encoder.layers.0.linear2.weight", f"{cross}[k]"),
        ("encoder.layers.0.linear2.weight", f"{cross}[v]"),
    ]


def attention(heads: int | None = 2, kv: int = 8, **extra: nn.Module) -> nn.Module:
    layers = Named(
        q_proj=nn.Linear(8, 8), k_proj=nn.Linear(8, kv), v_proj=nn.Linear(8, kv),
        o_proj=nn.Linear(8, 8), **extra,
    )  # fmt: skip
    if heads is not None:
        layers.num_heads = heads
    return Named(attn=layers, up=nn.Linear(8, 12))


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


def test_embeddings_in_plain_parameters_either_way_round() -> None:
    for shape in ((9, 4), (4, 9)):
        model = Named(embed=parameter(*shape), W=parameter(6, 4))
        assert keys(model) == [("embed", "W")]


def test_gated_mlps_are_not_chains() -> None:
    model = Named(
        inp=nn.Linear(3, 4), gate_proj=nn.Linear(4, 6), up_proj=nn.Linear(4, 6),
        down_proj=nn.Linear(6, 4),
    )  # fmt: skip
    assert keys(model) == [
        ("inp.weight", "gate_proj.weight"),
        ("inp.weight", "up_proj.weight"),
        ("gate_proj.weight", "down_proj.weight"),
        ("up_proj.weight", "down_proj.weight"),
    ]


def test_side_branches_read_and_write_with_their_block_and_hidden_layers_make_no_pair() -> None:
    block = Named(conv1=nn.Conv2d(3, 4, 3), conv2=nn.Conv2d(4, 4, 3), downsample=nn.Conv2d(3, 4, 1))
    model = nn.Sequential(block, nn.Conv2d(4, 2, 3))
    assert keys(model) == [
        ("0.conv1.weight", "0.conv2.weight"),
        ("0.conv2.weight", "1.weight"),
        ("0.downsample.weight", "1.weight"),
    ]
    # 0.conv1 and 1 are not neighbours, even if the layer between them is not watched.
    without = watch(model, exclude="0.conv2.weight")
    assert [pair.key for pair in without.pairs] == [("0.downsample.weight", "1.weight")]
    assert "0.conv2.weight between them is not watched" in without.explain()


def test_a_tied_head_reads_the_embedding_from_the_other_side() -> None:
    model = Named(embed=nn.Embedding(9, 4), fc=nn.Linear(4, 4), head=nn.Linear(4, 9, bias=False))
    model.head.weight = model.embed.weight
    assert keys(model) == [("embed.weight", "fc.weight"), ("fc.weight", "embed.weight")]
    (U, _), (_, Vh) = svd(model.fc.weight), svd(model.embed.weight)
    check(model, ("fc.weight", "embed.weight"), diagonal(U, Vh))


def test_given_pairs() -> None:
    model = attention()
    model.down = nn.Linear(12, 8)
    assert keys(model, pairs=[("up.weight", "down.weight")]) == [("up.weight", "down.weight")]
    q, k = "attn.q_proj.weight", "attn.k_proj.weight"
    (pair,) = watch(model, pairs=[(q, k)]).pairs
    assert (pair.key, len(pair.meetings)) == ((q, k), 2)
    # Others chain by shape: a skip connection.
    assert keys(model, pairs=[("attn.o_proj.weight", "attn.v_proj.weight")]) == [
        ("attn.o_proj.weight", "attn.v_proj.weight")
    ]
    assert keys(model, pairs=None) == []
    lstm = Named(lstm=nn.LSTM(3, 5), out=nn.Linear(5, 4))
    assert keys(lstm, pairs=[("lstm.weight_hh_l0[gate o]", "out.weight")]) == [
        ("lstm.weight_hh_l0[gate o]", "out.weight")
    ]


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


@pytest.mark.parametrize(
    ("pairs", "error", "words"),
    [
        (
            [("up.weight", "attn.q_proj.weight")],
            ValueError,
            r"\(12, 8\) gives 12.*\(8, 8\) takes 8",
        ),
        ([("up.weigth", "attn.q_proj.weight")], ValueError, "'up.weigth' is not.*up.weight"),
        ([("up.bias", "attn.q_proj.weight")], ValueError, "'up.bias' is not a matrix"),
        (["up"], TypeError, "expected \\(name, name"),
        ([("up.weight",)], TypeError, "expected \\(name, name"),
        ("all", ValueError, "expected 'auto'"),
    ],
)
def test_wrong_pairs(pairs: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        watch(attention(), pairs=pairs)


@pytest.mark.parametrize("make", [lambda m: m, lambda m: m.state_dict()], ids=["module", "state"])
def test_names_alone_give_the_chain_too(make: Callable[[nn.Module], object]) -> None:
    model = Named(embed=nn.Embedding(9, 4), a=nn.Linear(4, 6), b=nn.Linear(6, 3))
    assert keys(make(model)) == [("embed.weight", "a.weight"), ("a.weight", "b.weight")]
