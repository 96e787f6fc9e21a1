"""torch's Transformers with decomposed layers: the results of the dense ones, on every path."""

from __future__ import annotations

import copy

import pytest
import torch
from spectral_monitor.decomposed.layers.attention import DecomposedMultiheadAttention
from torch import nn

from tests.support.attentions import HEADS, D, L, N, Operations, S, decomposed
from tests.support.tolerances import REORDERED


def encoder(**options: object) -> nn.TransformerEncoder:
    """Return two blocks in float32, all their biases drawn."""
    block = nn.TransformerEncoderLayer(D, HEADS, 12, batch_first=True, **options)
    model = nn.TransformerEncoder(block, 2)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("options", [{}, {"activation": "gelu"}, {"norm_first": True}], ids=str)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor", "ignore:The PyTorch API of nested")
def test_encoders_in_evaluation(options: dict[str, object], fast: bool) -> None:
    dense = encoder(**options).eval()
    model = decomposed(dense)
    x = torch.randn(N, S, D)
    # Aligned left, so that torch's encoder makes a nested tensor of it.
    padding = torch.arange(S) >= torch.tensor([[S], [S - 2], [S - 3]])
    causal = nn.Transformer.generate_square_subsequent_mask(S)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        for given in ({}, {"src_key_padding_mask": padding}, {"mask": causal, "is_causal": True}):
            with torch.no_grad():
                found, want = model(x, **given), dense(x, **given)
            torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(model(x, **given), dense(x, **given), rtol=1e-4, atol=1e-5)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_the_fast_path_is_taken_in_evaluation() -> None:
    model = decomposed(encoder()).eval()
    with torch.no_grad(), Operations() as seen:
        model(torch.randn(N, S, D))
    assert "aten::_transformer_encoder_layer_fwd" in seen.names
    assert "spectral_kernels::usv_matmul" not in seen.names


@pytest.mark.parametrize("training", [True, False])
def test_decoders(training: bool) -> None:
    torch.manual_seed(2)
    dense = nn.TransformerDecoderLayer(D, HEADS, 12, dropout=0.2, dtype=torch.float64)
    model = copy.deepcopy(dense)
    for name in ("self_attn", "multihead_attn"):
        attention = DecomposedMultiheadAttention.from_attention(getattr(model, name))
        setattr(model, name, attention)
    dense.train(training)
    model.train(training)
    x, memory = (torch.randn(n, N, D, dtype=torch.float64) for n in (L, S))
    results = []
    for module in (dense, model):
        torch.manual_seed(4)
        results.append(module(x, memory))
    torch.testing.assert_close(*results, **REORDERED)
