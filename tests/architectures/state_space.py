"""State-space models of the ``transformers`` package."""

from __future__ import annotations

from .blocks import Feeder, tokens
from .catalogue import Example, architecture
from .decoders import LAYERS
from .truth import Truth


@architecture("Mamba", "transformers")
def mamba() -> Example:
    from transformers import MambaConfig, MambaForCausalLM

    rank, states, inner = 5, 6, 96
    model = MambaForCausalLM(
        MambaConfig(
            vocab_size=97, hidden_size=48, num_hidden_layers=LAYERS, state_size=states,
            time_step_rank=rank, conv_kernel=4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    truth = Truth(model)
    before: list[Feeder] = [truth.table("backbone.embeddings.weight")]
    for layer in range(LAYERS):
        at = f"backbone.layers.{layer}.mixer."
        inward, x, dt, out = (
            truth.linear(f"{at}{name}_proj.weight") for name in ("in", "x", "dt", "out")
        )
        hidden, gate = (
            inward.out.part("hidden", slice(inner)),
            inward.out.part("gate", slice(inner, None)),
        )
        truth.feeds(before, [inward])
        truth.feeds([hidden], [x])
        truth.feeds([x.out.part("dt", slice(rank))], [dt])
        # y = (scan of dt * hidden + D * hidden) * gate: three factors, and the skip through D adds
        # nothing that the scan does not carry.
        truth.feeds([hidden, gate, dt], [out])
        # B and C meet in the state as keys and queries do (Dao and Gu 2024); they are rows of the
        # same matrix.
        B = x.out.part("B", slice(rank, rank + states))
        C = x.out.part("C", slice(rank + states, None))
        truth.allow(B, C)
        truth.allow(C, B)
        before = [out]
    truth.feeds(before, [truth.linear("lm_head.weight")])
    return Example(model, truth, (tokens(),))
