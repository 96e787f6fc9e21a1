"""The experiment kit and the modular addition experiment, from the command line to the figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from spectral_monitor.monitor import SpectralMonitor

from experiments.kit.correlation import rank_correlation
from experiments.modular_addition import train
from experiments.modular_addition.claims import (
    EMBEDDING_TO_ATTENTION,
    check_claims,
    check_control,
)
from experiments.modular_addition.data import addition_split
from experiments.modular_addition.history import History
from experiments.modular_addition.model import AdditionTransformer, sinusoids
from experiments.modular_addition.presets import PRESETS, Settings
from experiments.modular_addition.train import cross_entropy, make_monitor, validate, warmed_up
from tests.support.device_steps import LateStreams, as_device
from tests.support.modular_addition import CPU, parse, recorded

# --- data and model ----------------------------------------------------------------------------


def test_split_holds_every_pair_once():
    split = addition_split(11, 0.3, seed=0, device=CPU)
    pairs = torch.cat([split.train_tokens, split.validation_tokens])
    assert len(split.train_tokens) == 36
    assert sorted(map(tuple, pairs[:, :2].tolist())) == [
        (i, j) for i in range(11) for j in range(11)
    ]
    assert (pairs[:, 2] == 11).all()
    sums = torch.cat([split.train_sums, split.validation_sums])
    assert torch.equal(sums, (pairs[:, 0] + pairs[:, 1]) % 11)


def test_split_marks_mirrored_pairs():
    split = addition_split(11, 0.5, seed=0, device=CPU)
    trained = {tuple(pair) for pair in split.train_tokens[:, :2].tolist()}
    expected = [(j, i) in trained for i, j in split.validation_tokens[:, :2].tolist()]
    assert split.mirror_is_trained.tolist() == expected
    assert any(expected)
    assert not all(expected)


def test_split_depends_on_the_seed_alone():
    torch.manual_seed(1)
    first = addition_split(11, 0.5, seed=4, device=CPU)
    torch.manual_seed(2)
    assert torch.equal(first.train_tokens, addition_split(11, 0.5, 4, CPU).train_tokens)
    assert not torch.equal(first.train_tokens, addition_split(11, 0.5, 5, CPU).train_tokens)


@pytest.mark.parametrize(("preset", "count"), [("paper", 226_816), ("yunis", 227_058)])
def test_parameter_counts_of_the_papers(preset, count):
    model = AdditionTransformer(PRESETS[preset])
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_paper_presets_train_on_3830_pairs():
    settings = PRESETS["paper"]
    split = addition_split(settings.p, settings.train_fraction, 0, CPU)
    assert (len(split.train_sums), len(split.validation_sums)) == (3830, 8939)


def test_initial_scale_is_nandas():
    torch.manual_seed(0)
    model = AdditionTransformer(PRESETS["paper"])
    assert model.mlp_out.weight.std().item() == pytest.approx(128**-0.5, rel=0.02)
    assert model.unembedding.weight.std().item() == pytest.approx(114**-0.5, rel=0.02)
    assert not model.mlp_in.bias.any()
    squares = sum(parameter.square().sum() for parameter in model.parameters())
    # Liu et al. (Omnigrok) start at about 42.5.
    assert squares.sqrt().item() == pytest.approx(42.5, rel=0.02)


def test_logits_are_those_of_an_ordinary_transformer():
    """The model computes the last position alone; here all three positions, with torch's own
    attention, in float64."""
    settings = replace(PRESETS["demo"], p=7, d_model=16, heads=4, d_mlp=32)
    torch.manual_seed(0)
    model = AdditionTransformer(settings).double()
    tokens = addition_split(7, 0.5, 0, CPU).train_tokens
    attention = model.attention
    x = model.embedding(tokens) + model.positions.weight

    def heads(y):
        return y.view(*y.shape[:2], 4, 4).transpose(1, 2)

    attended = torch.nn.functional.scaled_dot_product_attention(
        *(heads(layer(x)) for layer in (attention.query, attention.key, attention.value)),
        is_causal=True,
    )
    x = x + attention.output(attended.transpose(1, 2).flatten(2))
    x = x + model.mlp_out(torch.relu(model.mlp_in(x)))
    torch.testing.assert_close(model(tokens), model.unembedding(x)[:, -1], rtol=1e-12, atol=1e-12)


def test_sinusoids_follow_the_formula():
    table = sinusoids(3, 6)
    assert table[2, 2].item() == pytest.approx(np.sin(2 / 10_000 ** (2 / 6)), abs=1e-6)
    assert table[2, 5].item() == pytest.approx(np.cos(2 / 10_000 ** (4 / 6)), abs=1e-6)
    model = AdditionTransformer(replace(PRESETS["yunis"], p=7))
    assert "sinusoids" not in model.state_dict()


# --- claims of modular addition ----------------------------------------------------------------


def synthetic_history(*, generalizes: bool, rank_falls: bool) -> History:
    """Steps 0 to 1000 by 10: memorised at 100, validation accuracy 1 at 1000 or never."""
    steps = np.arange(0, 1001, 10)
    late = np.clip((steps - 100) / 900, 0, 1)
    # One aligned vector among 40 that climbs from 30 to 10, or stays and weak.
    centre = 30 - 20 * late if generalizes else np.full(len(steps), 30.0)
    diagonal = np.exp(-((np.arange(1, 41) - centre[:, None]) ** 2) / 50)
    diagonal = 0.5 * diagonal + (0.3 if generalizes else 0.05)
    rank = 0.9 - 0.4 * late if rank_falls else np.full(len(steps), 0.9) - 0.001 * late
    return History(
        steps=steps,
        scalars={
            "train_accuracy": np.clip(steps / 100, 0, 1),
            "validation_accuracy": late if generalizes else 0.4 * late,
            "unmirrored_accuracy": late if generalizes else 0.02 * late,
            "validation_loss": 5 - 5 * late if generalizes else 5 + 5 * late,
        },
        sides={"a": 8, "b": 8},
        ranks={"a": rank, "b": rank - 0.1},
        stable_ranks={"a": rank, "b": rank},
        alignment={EMBEDDING_TO_ATTENTION: diagonal},
    )


def holds(settings: Settings, history: History) -> list[bool]:
    return [claim.holds for claim in check_claims(settings, history)]


def test_claims_of_a_grokking_run():
    settings = PRESETS["demo"]
    grokked = synthetic_history(generalizes=True, rank_falls=True)
    assert holds(settings, grokked) == [True] * 6
    flat = synthetic_history(generalizes=True, rank_falls=False)
    assert holds(settings, flat) == [True, True, False, True, True, True]
    # Nothing generalised, so a fall of the rank has nothing to come with, and alignment stays.
    stuck = synthetic_history(generalizes=False, rank_falls=True)
    assert holds(settings, stuck) == [True, False, False, False, False, False]


def test_claims_without_weight_decay_expect_the_opposite():
    settings = replace(PRESETS["demo"], weight_decay=0.0)
    stuck = synthetic_history(generalizes=False, rank_falls=False)
    assert holds(settings, stuck) == [True, True, True]
    grokked = synthetic_history(generalizes=True, rank_falls=True)
    assert holds(settings, grokked) == [True, False, False]


def test_no_claims_where_the_papers_say_nothing():
    grokked = synthetic_history(generalizes=True, rank_falls=True)
    assert check_claims(replace(PRESETS["demo"], train_fraction=0.9), grokked) == []


def test_a_run_that_never_memorised_holds_nothing():
    history = synthetic_history(generalizes=False, rank_falls=False)
    history.scalars["train_accuracy"][:] = 0.5
    # That a network which has not even learned its pairs does not generalise shows nothing.
    assert holds(replace(PRESETS["demo"], weight_decay=0.0), history) == [False] * 3
    assert holds(PRESETS["demo"], history) == [False] * 6


def test_an_alignment_that_hardly_moves_is_not_a_climb():
    """On another machine the same seed ends a little elsewhere: half an index says nothing."""
    history = synthetic_history(generalizes=True, rank_falls=True)
    names = [claim.claim for claim in check_claims(PRESETS["demo"], history)]
    (climb,) = [i for i, name in enumerate(names) if "up the diagonal" in name]
    late = np.clip((history.steps - 100) / 900, 0, 1)
    for rise, expected in ((0.5, False), (6.0, True)):
        centre = 20 - rise * late
        diagonal = np.exp(-((np.arange(1, 41) - centre[:, None]) ** 2) / 50) + 0.05
        moved = replace(history, alignment={EMBEDDING_TO_ATTENTION: diagonal})
        assert holds(PRESETS["demo"], moved)[climb] is expected


def test_alignment_is_compared_with_that_of_the_same_step_without_decay():
    settings = PRESETS["demo"]
    control = replace(settings, weight_decay=0.0)
    grokked = synthetic_history(generalizes=True, rank_falls=True)
    stuck = synthetic_history(generalizes=False, rank_falls=False)

    def scaled(factor: float) -> History:
        """Without decay, an alignment of this share of what it is with decay, at every step."""
        diagonal = factor * grokked.alignment[EMBEDDING_TO_ATTENTION]
        return replace(stuck, alignment={EMBEDDING_TO_ATTENTION: diagonal})

    for factor, expected in ((0.3, True), (0.49, True), (0.51, False), (0.96, False)):
        (claim,) = check_control((settings, grokked), (control, scaled(factor)))
        assert claim.holds is expected
        assert claim.measured["step"] == grokked.generalized_at
        assert claim.measured["without"] == pytest.approx(factor * claim.measured["with decay"])
    # It is the step that counts: what an alignment grows to later is another matter.
    grows = scaled(0.3)
    diagonal = np.vstack([grows.alignment[EMBEDDING_TO_ATTENTION], [[9.0] * 40]])
    grows = replace(
        grows,
        steps=np.append(grows.steps, 5000),
        alignment={EMBEDDING_TO_ATTENTION: diagonal},
    )
    (claim,) = check_control((settings, grokked), (control, grows))
    assert claim.holds
    # Preconditions: both memorised, and the one with decay generalised.
    blank = scaled(0.1)
    blank.scalars["train_accuracy"] = np.full(len(blank.steps), 0.5)
    assert not check_control((settings, grokked), (control, blank))[0].holds
    assert not check_control((settings, stuck), (control, scaled(0.1)))[0].holds
    # Runs that differ in more than the decay are no control.
    assert check_control((settings, grokked), (replace(control, p=31), scaled(0.3))) == []
    assert check_control((control, grokked), (control, scaled(0.3))) == []


def test_rank_correlation_is_spearmans():
    x = np.array([3.0, 1.0, 4.0, 1.5, 9.0])
    assert rank_correlation(x, np.exp(x)) == pytest.approx(1.0)
    assert rank_correlation(x, -(x**3)) == pytest.approx(-1.0)
    assert np.isnan(rank_correlation(x[:2], x[:2]))
    ties = np.array([1.0, 1.0, 2.0, 3.0, 3.0])
    assert rank_correlation(ties, ties) == pytest.approx(1.0)
    assert rank_correlation(x, ties) == pytest.approx(spearmanr(x, ties).statistic)
    assert np.isnan(rank_correlation(x, np.ones(5)))


# --- whole runs --------------------------------------------------------------------------------


def test_the_monitor_watches_what_the_claims_need():
    model = AdditionTransformer(PRESETS["paper"])
    monitor = make_monitor(model, PRESETS["paper"], None)
    assert len(monitor.matrices) == 9
    assert [skipped.name for skipped in monitor.skipped] == ["mlp_in.bias", "mlp_out.bias"]
    pairs = {pair.key for pair in monitor.pairs}
    assert EMBEDDING_TO_ATTENTION in pairs
    assert ("attention.query.weight", "attention.key.weight") in pairs
    # The graph written down for this model is part of the one that is found from its modules.
    assert pairs <= {pair.key for pair in SpectralMonitor(model, every=1).pairs}


def test_a_gpu_is_not_waited_for_at_every_step(tmp_path, monkeypatch):
    """Frames that are on their way when the training ends are recorded all the same."""
    streams, waited = LateStreams(), []

    def monitor_of_a_gpu(*given):
        monitor = as_device(make_monitor(*given), streams)
        close = monitor.close
        monitor.close = lambda: (waited.append(streams.waits), close())
        return monitor

    monkeypatch.setattr(train, "make_monitor", monitor_of_a_gpu)
    options = parse(
        *("--p", "7", "--d-model", "16", "--heads", "2", "--d-mlp", "32", "--device", "cpu"),
        *("--max-steps", "12", "--checkpoint-every", "100", "--validate-every", "5"),
    )
    train.train(options, tmp_path)
    assert waited == [0]
    assert streams.waits > 0
    rows = recorded(tmp_path)
    assert [row["step"] for row in rows] == list(range(13))
    assert all(isinstance(row["train_loss"], float) for row in rows)


def test_the_learning_rate_warms_up():
    settings = PRESETS["paper"]
    rates = [warmed_up(settings, step) for step in (0, 4, 9, 100)]
    assert rates == pytest.approx([1e-4, 5e-4, 1e-3, 1e-3])
    assert warmed_up(PRESETS["yunis"], 0) == 1e-3


def test_the_loss_does_not_round_to_zero():
    """In float32 a sure answer has loss 0 and no gradient."""
    logits = torch.zeros(1, 5, requires_grad=True)
    sure = torch.tensor([[40.0, 0.0, 0.0, 0.0, 0.0]]) + logits
    loss = cross_entropy(sure, torch.tensor([0]))
    assert loss.item() == pytest.approx(4 * np.exp(-40.0), rel=0.05)
    assert torch.nn.functional.cross_entropy(sure, torch.tensor([0])).item() == 0.0


def test_validation_counts_unmirrored_pairs_apart():
    class Mirror(torch.nn.Module):
        """Right on pairs with i <= j."""

        def forward(self, tokens):
            i, j = tokens[:, 0], tokens[:, 1]
            answer = torch.where(i <= j, (i + j) % 11, (i + j + 1) % 11)
            return 50.0 * torch.nn.functional.one_hot(answer, 12).float()

    split = addition_split(11, 0.5, 0, CPU)
    measured = validate(Mirror(), split)
    right = split.validation_tokens[:, 0] <= split.validation_tokens[:, 1]
    assert measured["validation_accuracy"] == pytest.approx(right.double().mean().item())
    unmirrored = right[~split.mirror_is_trained].double().mean().item()
    assert measured["unmirrored_accuracy"] == pytest.approx(unmirrored)
