"""A state dict and its module agree, in the order given and in that of the alphabet."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from spectral_monitor.model.config import HeadCounts
from spectral_monitor.model.natural_order import natural_order
from spectral_monitor.monitor import SpectralMonitor
from torch import Tensor, nn

from tests.architectures.catalogue import Architecture
from tests.architectures.every import ARCHITECTURES

State = dict[str, Tensor]

# Its state dict has other names than its modules.
RENAMED = ("TransformerLens, bridge to Llama", "TransformerLens, bridge to GPT-2")


def watched(model: nn.Module | State) -> dict[str, tuple[object, ...]]:
    """Name -> what a matrix is; a state dict is told of heads, as nothing in it does."""
    heads = None if isinstance(model, nn.Module) else 3
    monitor = SpectralMonitor(model, pairs=None, reference=None, heads=heads)
    return {
        m.name: (m.shape, m.kind, m.aliases, m.source.is_table, m.source.taps, m.source.centre,
                 tuple(block.label for block in m.source.blocks))
        for m in monitor.matrices
    }  # fmt: skip


def values_agree(model: nn.Module, state: State) -> bool:
    """Orientation and order of entries: the matrices are equal."""
    ours, theirs = (
        {m.name: m.view() for m in SpectralMonitor(x, pairs=None, reference=None).matrices}
        for x in (model, state)
    )
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def alphabetical(state: State) -> State:
    return dict(sorted(state.items()))


class Table(nn.Module):
    """Modules by names."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


class Conv1D(nn.Module):
    """GPT-2's linear layer: x @ W + b."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))


class Stack(nn.Module):
    """Parameters by name."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))


def gpt2_block() -> nn.Module:
    return Table(
        ln_1=nn.LayerNorm(12),
        attn=Table(c_attn=Conv1D(36, 12), c_proj=Conv1D(12, 12)),
        mlp=Table(c_fc=Conv1D(48, 12), c_proj=Conv1D(12, 48)),
    )


def tied() -> nn.Module:
    model = Table(wte=nn.Embedding(20, 12), h=nn.ModuleList([gpt2_block() for _ in range(12)]),
                  lm_head=nn.Linear(12, 20, bias=False))  # fmt: skip
    model.lm_head.weight = model.wte.weight
    return model


def separable() -> nn.Module:
    return Table(
        stem=nn.Conv2d(3, 16, 3, bias=False),
        blocks=nn.Sequential(
            nn.Conv2d(16, 16, 3, groups=16, bias=False),
            nn.Conv2d(16, 32, 1),
            nn.Conv2d(32, 32, 3, groups=4, bias=False),
            nn.Conv2d(32, 24, 1, bias=False),
        ),
        head=nn.Linear(24, 10),
    )


MODELS = {
    "embedding, linear": lambda: nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 32)),
    "GPT-2": tied,
    "gray images": lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 3)),
    "groups": separable,
    "groups beside layers that give as few": lambda: Table(
        stem=nn.Conv2d(3, 12, 3),
        block=Table(
            conv1=nn.Conv2d(12, 16, 1),
            conv2=nn.Conv2d(16, 16, 3, groups=2),
            conv3=nn.Conv2d(16, 8, 1),
        ),
    ),
    "branches side by side": lambda: Table(
        stem=Table(one=nn.Conv2d(3, 12, 1), three=nn.Conv2d(3, 12, 3)),
        block=Table(one=nn.Conv2d(12, 24, 1), three=nn.Conv2d(12, 24, 3)),
    ),
    "sound": lambda: nn.Sequential(nn.Conv1d(1, 16, 10, bias=False), nn.Conv1d(16, 12, 3)),
    "LSTM": lambda: Table(
        embed=nn.Embedding(30, 7),
        lstm=nn.LSTM(7, 5, num_layers=2, bidirectional=True),
        head=nn.Linear(10, 4),
    ),
    "LSTM with projection": lambda: Table(lstm=nn.LSTM(7, 6, proj_size=3)),
    "GRU": lambda: Table(gru=nn.GRU(7, 5), top=nn.GRUCell(5, 4)),
    "RNN": lambda: Table(rnn=nn.RNN(7, 5), top=nn.LSTMCell(5, 4)),
    "attention": lambda: Table(attn=nn.MultiheadAttention(12, 3), norm=nn.LayerNorm((3, 12))),
    "deconvolution": lambda: Table(conv=nn.Conv2d(3, 8, 3), up=nn.ConvTranspose2d(8, 5, 2)),
    "experts": lambda: Table(
        gate=nn.Linear(8, 4, bias=False),
        experts=Stack(gate_up_proj=(4, 20, 8), down_proj=(4, 8, 10)),
    ),
    "experts, inputs first": lambda: Table(
        experts=Stack(gate_up_proj=(4, 8, 20), down_proj=(4, 10, 8))
    ),
    "experts with biases": lambda: Table(
        experts=Stack(
            gate_up_proj=(4, 8, 20), gate_up_proj_bias=(4, 20),
            down_proj=(4, 10, 8), down_proj_bias=(4, 8),
        )
    ),
    "experts of layers": lambda: Table(experts=Stack(w1=(2, 3, 9, 8), w2=(2, 3, 8, 9))),
    "TransformerLens": lambda: Table(
        embed=Stack(W_E=(30, 12)),
        attn=Stack(W_Q=(3, 12, 4), W_K=(3, 12, 4), W_V=(3, 12, 4), W_O=(3, 4, 12), b_Q=(3, 4),
                   b_K=(3, 4), b_V=(3, 4), b_O=(12,)),
        mlp=Stack(W_in=(12, 20), W_gate=(12, 20), W_out=(20, 12), b_in=(20,), b_out=(12,)),
        unembed=Stack(W_U=(12, 30), b_U=(30,)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_state_dict_agrees_with_its_module(name: str) -> None:
    model = MODELS[name]()
    ours = watched(model)
    for state in (dict(model.state_dict()), alphabetical(dict(model.state_dict()))):
        assert watched(state) == ours
        assert values_agree(model, state)
    assert list(watched(dict(model.state_dict()))) == list(ours)


@pytest.mark.parametrize("one", ARCHITECTURES, ids=lambda one: one.name)
def test_the_state_dict_of_an_architecture_agrees_with_it(one: Architecture) -> None:
    if one.missing is not None:
        pytest.skip(one.missing)
    if one.name in RENAMED:
        pytest.skip("its state dict renames its parameters")
    model = one.example().model
    ours = watched(model)
    state = dict(model.state_dict())
    assert list(watched(state).items()) == list(ours.items())
    assert watched(alphabetical(state)) == ours
    assert values_agree(model, alphabetical(state))


def test_what_multiplies_from_the_right_is_shown_as_outputs_by_inputs() -> None:
    shapes = {name: row[0] for name, row in watched(MODELS["TransformerLens"]()).items()}
    assert shapes["attn.W_Q[2]"] == (4, 12)
    assert shapes["attn.W_O[0]"] == (12, 4)
    assert (shapes["mlp.W_in"], shapes["mlp.W_gate"], shapes["mlp.W_out"]) == (
        (20, 12),
        (20, 12),
        (12, 20),
    )
    assert shapes["unembed.W_U"] == (30, 12)
    for name in ("experts, inputs first", "experts with biases"):
        shapes = {name: row[0] for name, row in watched(MODELS[name]()).items()}
        assert shapes["experts.gate_up_proj[3]"] == (20, 8)
        assert shapes["experts.down_proj[3]"] == (8, 10)
    assert watched(tied())["h.0.attn.c_attn.weight"][0] == (36, 12)


def test_what_was_guessed_is_said() -> None:
    told = SpectralMonitor(dict(separable().state_dict())).explain()
    assert "guessed to be 4 groups of the 32 channels before it: no layer gives 8" in told
    assert "vector; guessed to be depthwise: the layer before it gives more than 1" in told
    told = SpectralMonitor(dict(MODELS["embedding, linear"]().state_dict())).explain()
    assert "guessed to be an embedding: the next layer reads its columns" in told
    told = SpectralMonitor(dict(MODELS["GPT-2"]().state_dict())).explain()
    assert "stored as (inputs, outputs), by its bias" in told
    assert "square, taken as stored (inputs, outputs), as layers of its name are" in told
    shapes = {"a": (9, 9), "b": (9, 6), "c": (4, 6)}
    state = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    state |= {
        f"{name}.bias": torch.randn(size) for name, size in zip("abc", (9, 6, 4), strict=True)
    }
    told = SpectralMonitor(state).explain()
    assert "square: which side is the output is not known" in told


def test_tied_is_what_lies_in_one_place_in_one_way() -> None:
    buffer = torch.randn(60)
    same = buffer[:30].view(5, 6)
    state = {
        "a.weight": same,
        "b.weight": buffer[:30].view(5, 6),
        "turned.weight": same.T,
        "other.weight": buffer[30:].view(5, 6),
        "longer.weight": buffer.view(10, 6),
        "equal.weight": same.clone(),
    }
    aliases = {m.name: m.aliases for m in SpectralMonitor(state, pairs=None).matrices}
    assert aliases == {
        "a.weight": ("b.weight",),
        "turned.weight": (),
        "other.weight": (),
        "longer.weight": (),
        "equal.weight": (),
    }


def llama(layers: int = 12) -> State:
    sizes = {
        "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (16, 32),
        "self_attn.v_proj": (16, 32),
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (56, 32),
        "mlp.up_proj": (56, 32),
        "mlp.down_proj": (32, 56),
    }
    state = {"model.embed_tokens.weight": torch.randn(70, 32)}
    for i in range(layers):
        block = f"model.layers.{i}"
        state.update({f"{block}.{n}.weight": torch.randn(s) for n, s in sizes.items()})
        state[f"{block}.input_layernorm.weight"] = torch.ones(32)
    return {**state, "model.norm.weight": torch.ones(32), "lm_head.weight": torch.randn(70, 32)}


CONFIG = {"num_attention_heads": 4, "num_key_value_heads": 2, "model_type": "llama"}


def test_a_llama_in_alphabetical_order_has_the_pairs_of_one_in_its_own() -> None:
    own, by_alphabet = (
        SpectralMonitor(state, config=CONFIG, reference=None)
        for state in (llama(), alphabetical(llama()))
    )
    assert len(own.pairs) > 100
    assert [pair.key for pair in by_alphabet.pairs] == [pair.key for pair in own.pairs]
    assert [m.name for m in by_alphabet.matrices] == [m.name for m in own.matrices]
    assert "alphabetical order" in by_alphabet.explain()
    assert "alphabetical order" not in own.explain()


@pytest.mark.parametrize("name", ["LSTM", "LSTM with projection", "GRU", "RNN"])
def test_a_recurrent_layer_has_the_same_pairs_without_its_module(name: str) -> None:
    model = MODELS[name]()
    ours = [pair.key for pair in SpectralMonitor(model, reference=None).pairs]
    state = dict(model.state_dict())
    for given in (state, alphabetical(state)):
        theirs = [pair.key for pair in SpectralMonitor(given, reference=None).pairs]
        assert sorted(theirs) == sorted(ours)
    assert ours


def test_numbers_out_of_order_betray_the_alphabet_and_any_other_order_stands() -> None:
    shards = ["h.0.w", "h.1.w", "h.10.w", "h.2.w", "embed.w"]
    assert natural_order(shards) == ["embed.w", "h.0.w", "h.1.w", "h.2.w", "h.10.w"]
    assert natural_order(["z.w", "a.w", "head.w", "h.0.w"]) is None
    assert natural_order(["a.w", "b.w", "c.w"]) is None
    assert natural_order(["h.0.a", "h.1.a", "h.0.b", "h.1.b"]) is None
    assert natural_order([]) is None


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("model.q_proj.weight", {"num_attention_heads": 4}, 4),
        ("model.q_proj.weight", SimpleNamespace(n_head=6), 6),
        ("text_model.q.weight", {"text_config": {"num_attention_heads": 2},
                                 "vision_config": {"num_attention_heads": 3}}, 2),
        ("vision_model.q.weight", {"text_config": {"num_attention_heads": 2},
                                   "vision_config": {"num_attention_heads": 3}}, 3),
        ("model.language.q.weight", {"text_config": SimpleNamespace(num_heads=5)}, 5),
        ("model.encoder.q.weight", {"encoder_attention_heads": 2, "decoder_attention_heads": 4,
                                    "num_attention_heads": 2}, 2),
        ("model.decoder.q.weight", {"encoder_attention_heads": 2, "decoder_attention_heads": 4,
                                    "num_attention_heads": 2}, 4),
    ],
)  # fmt: skip
def test_a_config_tells_the_heads_of_a_state_dict(name: str, config: object, expected: int) -> None:
    assert HeadCounts(None, {}, [name], config).queries(name) == expected


def test_a_config_that_has_no_fields_is_refused() -> None:
    with pytest.raises(TypeError, match=r"config: expected a Hugging Face config .* got str"):
        SpectralMonitor(llama(1), config="config.json")
