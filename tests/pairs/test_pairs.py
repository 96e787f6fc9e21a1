"""Which layers feed which, and which singular vectors meet."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from tests.support.named_models import Named
from tests.support.paired import attention, check, diagonal, keys, parameter, svd, watch


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
