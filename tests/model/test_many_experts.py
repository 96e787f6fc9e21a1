"""48 layers of 128 experts: what is planned grows with the experts, not with their square."""

from __future__ import annotations

import time

import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from torch import Tensor, nn

LAYERS, EXPERTS = 48, 128


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.utils.skip_init(nn.Linear, inputs, outputs, bias=False)


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = linear(6, 4), linear(6, 4)
        self.down_proj = linear(4, 6)


class Stacked(nn.Module):
    """Experts in two 3-D parameters, as newer models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(EXPERTS, 8, 6))
        self.down_proj = nn.Parameter(torch.zeros(EXPERTS, 6, 4))


class Mixture(nn.Module):
    def __init__(self, *, stacked: bool) -> None:
        super().__init__()
        self.gate = linear(6, EXPERTS)
        self.experts = Stacked() if stacked else nn.ModuleList(Expert() for _ in range(EXPERTS))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 2
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (linear(6, 6) for _ in range(4))


class Layer(nn.Module):
    def __init__(self, *, stacked: bool) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(), Mixture(stacked=stacked)


class Model(nn.Module):
    def __init__(self, *, stacked: bool) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(9, 6)
        self.layers = nn.ModuleList(Layer(stacked=stacked) for _ in range(LAYERS))
        self.lm_head = linear(6, 9)

    def forward(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("stacked", [False, True], ids=["modules", "3-D parameters"])
def test_a_monitor_of_many_experts_is_made_in_seconds_and_told_in_lines(stacked: bool) -> None:
    model = Model(stacked=stacked)
    start = time.process_time()
    monitor = SpectralMonitor(model, reference=None)
    seconds = time.process_time() - start
    assert len(monitor.matrices) == 2 + LAYERS * (5 + EXPERTS * (2 if stacked else 3))
    # Of each expert: what it reads from attention, its own, and what reads it in the next layer.
    assert len(monitor.pairs) + len(monitor.rejected_pairs) < 10 * LAYERS * EXPERTS
    wrong = [p.key for p in monitor.pairs if "experts.0." in p.first and "experts.1" in p.second]
    assert not wrong
    assert len(monitor.explain().splitlines()) < 300
    # 1.5 to 3 seconds of one core, by how busy its neighbours are; with each expert's output paired
    # with each expert's input it was minutes.
    assert seconds < 10
