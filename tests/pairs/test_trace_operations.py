"""Traces through mixers, graphs, packed sequences, transforms, and activations told in place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import rnn

import spectral_kernels as sk
from tests.support.traced import Module, drawn

EDGES = torch.tensor([[0, 1, 2, 2, 3, 0], [1, 2, 0, 0, 1, 1]])
A_TO_B = {"feeds: a.weight[0:5, 0] -> b.weight[0, 0:5]"}


def between(f: Callable[[Tensor], Tensor]) -> Module:
    return Module(lambda m, x: m.b(f(m.a(x))), a=nn.Linear(4, 5), b=nn.Linear(5, 3))


@pytest.mark.parametrize(
    "f",
    [
        functional.hardswish,
        lambda h: functional.hardswish(h, inplace=True),
        lambda h: functional.mish(h, inplace=True),
        functional.logsigmoid,
        lambda h: functional.threshold(h, 0.1, 0.0, inplace=True),
        lambda h: functional.rrelu(h, inplace=True),
        lambda h: h.abs_(),
        lambda h: h.cumprod_(0),
        lambda h: torch.cat(torch.unsafe_split(h, 2, 0)),
    ],
)  # fmt: skip
def test_activations_that_pytorch_does_not_call_elementwise(f: Callable[[Tensor], Tensor]) -> None:
    assert drawn(between(f), torch.randn(4, 4)) == A_TO_B


def summed(h: Tensor) -> Tensor:
    return torch.zeros_like(h).scatter_add_(0, EDGES[1][:, None].expand(-1, 5), h[EDGES[0]])


def averaged(h: Tensor) -> Tensor:
    index = EDGES[1][:, None].expand(-1, 5)
    return torch.zeros_like(h).scatter_reduce(0, index, h[EDGES[0]], "mean", include_self=False)


def largest(h: Tensor) -> Tensor:
    return torch.zeros_like(h).index_reduce(0, EDGES[1], h[EDGES[0]], "amax")


def put(h: Tensor) -> Tensor:
    return torch.zeros_like(h).index_put((EDGES[1],), h[EDGES[0]], accumulate=True)


def adjacency() -> Tensor:
    return torch.sparse_coo_tensor(EDGES, torch.ones(6), (4, 4)).coalesce()


@pytest.mark.parametrize(
    "f",
    [
        summed,
        averaged,
        largest,
        put,
        lambda h: torch.sparse.mm(adjacency(), h),
        lambda h: adjacency() @ h,
        lambda h: adjacency().to_sparse_csr() @ h,
    ],
)  # fmt: skip
def test_neighbours_in_a_graph_keep_their_channels(f: Callable[[Tensor], Tensor]) -> None:
    assert drawn(between(f), torch.randn(4, 4)) == A_TO_B


def test_rows_of_two_writers_that_meet_in_one_place() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        index = torch.tensor([0, 0, 1])[:, None].expand(-1, 5)
        h = torch.cat([m.a(x[:1]), m.c(x[1:])])
        return m.b(torch.zeros(2, 5).scatter_add(0, index, h))

    model = Module(forward, a=nn.Linear(4, 5), b=nn.Linear(5, 3), c=nn.Linear(4, 5))
    assert drawn(model, torch.randn(3, 4)) == A_TO_B | {
        "feeds: c.weight[0:5, 0] -> b.weight[0, 0:5]"
    }


def test_entries_with_indices_of_their_own_end_and_are_named() -> None:
    index = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    traced = sk.trace(
        between(lambda h: torch.zeros_like(h).scatter_add(0, index, h)), torch.randn(4, 4)
    )
    assert traced.edges == ()
    assert set(traced.ended) == {"aten::scatter_add"}


def test_words_as_sparse_rows_of_inputs() -> None:
    model = Module(lambda m, x: m.b(x @ m.table), table=nn.Parameter(torch.randn(4, 5)),
                   b=nn.Linear(5, 3))  # fmt: skip
    assert drawn(model, torch.eye(4).to_sparse()) == {"feeds: table[0, 0:5] -> b.weight[0, 0:5]"}


def test_packed_sequences_of_an_embedding() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        lengths = torch.tensor([2, 4])
        packed = rnn.pack_padded_sequence(m.e(x), lengths, batch_first=True, enforce_sorted=False)
        return m.out(rnn.pad_packed_sequence(m.rnn(packed)[0], batch_first=True)[0])

    model = Module(forward, e=nn.Embedding(9, 3), rnn=nn.RNN(3, 4, batch_first=True),
                   out=nn.Linear(4, 2))  # fmt: skip
    assert drawn(model, torch.randint(9, (2, 4))) == {
        "feeds: e.weight[0, 0:3] -> rnn.weight_ih_l0[0, 0:3]",
        "feeds: rnn.weight_ih_l0[0:4, 0] -> rnn.weight_hh_l0[0, 0:4]",
        "feeds: rnn.weight_ih_l0[0:4, 0] -> out.weight[0, 0:4]",
        "feeds: rnn.weight_hh_l0[0:4, 0] -> out.weight[0, 0:4]",
    }


def test_a_transform_over_tokens_keeps_channels_and_one_over_channels_mixes_them() -> None:
    over_tokens = between(lambda h: torch.fft.irfft(torch.fft.rfft(h, dim=0), n=4, dim=0))
    assert drawn(over_tokens, torch.randn(4, 4)) == A_TO_B
    over_channels = between(lambda h: torch.fft.fft(h).real)
    assert drawn(over_channels, torch.randn(4, 4)) == set()
    mixed = sk.trace(over_channels, torch.randn(4, 4)).mixed
    assert mixed == (("a.weight", "aten::_fft_r2c", "b.weight"),)


def test_a_mixer_has_writers_along_tokens_and_along_channels() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        x = m.embed(x)
        for tokens, more, channels, wide in ((m.t1, m.u1, m.c1, m.d1), (m.t2, m.u2, m.c2, m.d2)):
            x = x + more(functional.gelu(tokens(x.mT))).mT
            x = x + wide(functional.gelu(channels(x)))
        return m.head(x.mean(1))

    model = Module(
        forward, embed=nn.Linear(3, 4), head=nn.Linear(4, 2),
        **{f"{name}{i}": nn.Linear(*sizes) for i in (1, 2)
           for name, sizes in {"t": (5, 7), "u": (7, 5), "c": (4, 6), "d": (6, 4)}.items()},
    )  # fmt: skip
    assert drawn(model, torch.randn(2, 5, 3)) == {
        f"feeds: {a}.weight[0:{n}, 0] -> {b}.weight[0, 0:{n}]"
        for a, b, n in [
            ("t1", "u1", 7), ("t2", "u2", 7), ("u1", "t2", 5),
            ("embed", "c1", 4), ("c1", "d1", 6), ("d1", "c2", 4), ("c2", "d2", 6),
            ("d2", "head", 4),
        ]
    }  # fmt: skip


def test_what_scales_or_is_its_own_side_is_no_pair_of_a_monitor() -> None:
    """Sines in a table turn queries and keys, as those of RoFormer, and meet themselves."""

    def turned(x: Tensor, table: Tensor) -> Tensor:
        return x * table[:, :2].repeat_interleave(2, -1)

    def forward(m: Module, x: Tensor) -> Tensor:
        table = m.table(torch.arange(x.shape[1]))
        scores = turned(m.q(x), table) @ turned(m.k(x), table).mT
        return m.o(scores.softmax(-1) @ m.v(x))

    layers = {name: nn.Linear(4, 4) for name in "qkvo"}
    model = Module(forward, table=nn.Embedding(5, 4), **layers)
    monitor = sk.SpectralMonitor(model, pairs=sk.trace(model, torch.randn(2, 5, 4)), every=1)
    frame = monitor.step(0)
    assert set(frame.alignment) == {("q.weight", "k.weight"), ("v.weight", "o.weight")}
    assert "an output meets several" in monitor.explain()


def test_a_step_size_for_a_whole_state_is_a_scale() -> None:
    """Outer products of a state-space layer: b and c meet, the steps of all channels do not."""

    def forward(m: Module, x: Tensor) -> Tensor:
        steps, inputs, outputs = m.a(x), m.b(x), m.c(x)
        state = steps[..., :, None] * inputs[..., None, :]
        return m.o((state * outputs[..., None, :]).sum(-1))

    model = Module(forward, a=nn.Linear(4, 6), b=nn.Linear(4, 3), c=nn.Linear(4, 3),
                   o=nn.Linear(6, 2))  # fmt: skip
    found = drawn(model, torch.randn(2, 4))
    matrix = Module(
        lambda m, x: m.o(((m.b(x)[:, None] * m.a(x)[..., None]) @ m.c(x)[..., None]).squeeze(-1)),
        a=nn.Linear(4, 6), b=nn.Linear(4, 3), c=nn.Linear(4, 3), o=nn.Linear(6, 2),
    )  # fmt: skip
    assert (
        found
        == drawn(matrix, torch.randn(2, 4))
        == {
            "multiplied: b.weight[0:3, 0] -> c.weight[0:3, 0]",
            "feeds: a.weight[0:6, 0] -> o.weight[0, 0:6]",
        }
    )


def test_halves_of_one_layer_in_the_places_of_a_sum() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        zeros = torch.zeros(len(x), 2)
        first, second = m.a(x).chunk(2, -1)
        return m.out(torch.cat([first, zeros], -1) + torch.cat([zeros, second], -1))

    model = Module(forward, a=nn.Linear(3, 4), out=nn.Linear(4, 2))
    assert drawn(model, torch.randn(2, 3)) == {"feeds: a.weight[0:4, 0] -> out.weight[0, 0:4]"}


def test_a_bilinear_layer_reads_rows_and_columns() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        return m.out(m.form(m.a(x), m.b(x)))

    layers = {"a": nn.Linear(3, 4), "b": nn.Linear(3, 5), "form": nn.Bilinear(4, 5, 6)}
    model = Module(forward, **layers, out=nn.Linear(6, 2))
    traced = sk.trace(model, torch.randn(2, 3))
    assert traced.mixed == (("form.weight", "aten::_trilinear", "out.weight"),)
    assert drawn(model, torch.randn(2, 3)) == {
        "feeds: a.weight[0:4, 0] -> form.weight[0, 0:4, 0]",
        "feeds: b.weight[0:5, 0] -> form.weight[0, 0, 0:5]",
    }
    monitor = sk.SpectralMonitor(model, pairs=traced, reference=None)
    met = [ports for pair in monitor.pairs for ports in pair.meetings]
    found = {(a.matrix.name, a.side, b.matrix.name, b.side) for a, b in met}
    assert found == {
        (first, "U", f"form.weight[{entry}]", end)
        for first, end in (("a.weight", "U"), ("b.weight", "V"))
        for entry in range(6)
    }
