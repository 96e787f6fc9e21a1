"""Division with decomposed layers: data, parameter counts, the decoder, runs, claims, the study."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from spectral_monitor.decomposed.convert.recomposition import recompose_model
from spectral_monitor.decomposed.layers.layer import DecomposedLayer
from torch import Tensor, nn

from experiments.decomposed_division.__main__ import main, parse
from experiments.decomposed_division.data import SEQUENCE, Split, division_split
from experiments.decomposed_division.model import GROUPS, DivisionTransformer, make_model
from experiments.decomposed_division.presets import PRESETS
from experiments.decomposed_division.study import arms_of
from experiments.decomposed_division.study import main as study
from experiments.decomposed_division.train import make_task, quotient_loss, warmed_up
from experiments.kit.run_folder import run_folder
from experiments.kit.training import make_monitor
from experiments.kit.updates import Updates
from tests.support.dispatched import Apart, NoReads

CPU = torch.device("cpu")
TINY = replace(
    PRESETS["cpu"], p=7, d_model=16, heads=2, d_mlp=32, batch_size=8, train_measured=None
)

# --- data --------------------------------------------------------------------------------------


def test_split_holds_every_equation_once():
    split = division_split(11, 0.8, seed=0, device=CPU)
    assert (len(split.train_tokens), len(split.test_tokens)) == (88, 22)
    tokens = torch.cat([split.train_tokens, split.test_tokens])
    c = torch.cat([split.train_quotients, split.test_quotients])
    a, b = tokens[:, 0], tokens[:, 2]
    assert sorted(zip(a.tolist(), b.tolist(), strict=True)) == [
        (i, j) for i in range(11) for j in range(1, 11)
    ]
    assert torch.equal(b * c % 11, a)
    assert (tokens[:, 1] == 11).all()
    assert (tokens[:, 3] == 12).all()


def test_the_paper_has_9312_equations():
    split = division_split(97, 0.65, seed=0, device=CPU)
    assert len(split.train_tokens) + len(split.test_tokens) == 9312
    assert len(split.train_tokens) == 6052
    assert int(split.train_tokens.max()) == 98


def test_split_depends_on_the_seed_alone():
    torch.manual_seed(1)
    first = division_split(11, 0.5, 4, CPU).train_tokens
    torch.manual_seed(2)
    assert torch.equal(first, division_split(11, 0.5, 4, CPU).train_tokens)
    assert not torch.equal(first, division_split(11, 0.5, 5, CPU).train_tokens)


# --- parameter counts --------------------------------------------------------------------------


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("layers", "name", "share", "expected"),
    [
        *(
            ("embedding", "token_embedding", share, expected)
            for share, expected in zip(
                (0.125, 0.25, 0.5, 0.75, 1.0), (2_868, 6_300, 13_850, 22_274, 32_274), strict=True
            )
        ),
        *(
            ("positions", "position_embedding", share, expected)
            for share, expected in zip(
                (0.2, 0.4, 0.6, 0.8, 1.0), (134, 270, 408, 548, 690), strict=True
            )
        ),
    ],
)
def test_parameter_counts_of_tables_1_and_2(layers, name, share, expected):
    model = make_model(replace(PRESETS["paper"], decompose=layers, rank=share))
    assert count(model.get_submodule(name)) == expected


def test_parameter_counts_of_the_baseline():
    model = make_model(PRESETS["paper"])
    assert count(model.token_embedding) == 12_672
    assert count(model.position_embedding) == 640
    assert model.output.weight.shape == (99, 128)
    assert model.blocks[0].attention.in_proj.weight.shape == (384, 128)
    assert count(model) == 422_883


def test_ranks_of_attention_and_feed_forward_are_the_papers():
    for share, rank in zip((0.125, 0.25, 0.5, 0.75, 1.0), (16, 32, 64, 96, 128), strict=True):
        model = make_model(replace(PRESETS["paper"], decompose="everything", rank=share))
        layers = [
            *(block.attention.in_proj for block in model.blocks),
            *(block.attention.out_proj for block in model.blocks),
            *(block.fc1 for block in model.blocks),
            *(block.fc2 for block in model.blocks),
        ]
        assert {layer.rank for layer in layers} == {rank}
    # Section 5.4: rank 16 of the feed-forward blocks has about 84 % fewer parameters, 32 67 %.
    dense = sum(block.fc1.weight.numel() + block.fc2.weight.numel() for block in
                make_model(PRESETS["paper"]).blocks)  # fmt: skip
    for share, fewer in ((0.125, 0.84), (0.25, 0.67)):
        model = make_model(replace(PRESETS["paper"], decompose="feed_forward", rank=share))
        factors = sum(
            factor.numel()
            for layer in model.modules()
            if isinstance(layer, DecomposedLayer)
            for factor in layer.factors()
        )
        assert 1 - factors / dense == pytest.approx(fewer, abs=0.015)


@pytest.mark.parametrize("layers", sorted(GROUPS))
def test_groups_decompose_what_they_say(layers):
    model = make_model(replace(TINY, decompose=layers))
    found = {n for n, module in model.named_modules() if isinstance(module, DecomposedLayer)}
    attention = {f"blocks.{i}.attention.{n}_proj" for i in range(2) for n in ("in", "out")}
    blocks = {f"blocks.{i}.fc{j}" for i in range(2) for j in (1, 2)}
    most = {"token_embedding", "output"} | attention | blocks
    assert (
        found
        == {
            "none": set(),
            "embedding": {"token_embedding"},
            "positions": {"position_embedding"},
            "attention": attention,
            "qkv": {name for name in attention if "in_" in name},
            "proj": {name for name in attention if "out_" in name},
            "feed_forward": blocks,
            "fc1": {name for name in blocks if "fc1" in name},
            "fc2": {name for name in blocks if "fc2" in name},
            "output": {"output"},
            "all": most,
            "everything": most | {"position_embedding"},
        }[layers]
    )


# --- the decoder -------------------------------------------------------------------------------


def plain_logits(model: DivisionTransformer, tokens: Tensor) -> Tensor:
    """The same decoder as it is written in books: all positions of all equations."""
    x = model.token_embedding(tokens) + model.position_embedding.weight[:SEQUENCE]
    for block in model.blocks:
        batch, length, d = x.shape
        heads = block.attention.num_heads
        query, key, value = (
            part.view(batch, length, heads, d // heads).transpose(1, 2)
            for part in block.attention.in_proj(x).chunk(3, dim=-1)
        )
        attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        attended = block.attention.out_proj(attended.transpose(1, 2).flatten(2))
        x = block.attention_norm(x + attended)
        x = block.mlp_norm(x + block.fc2(nn.functional.gelu(block.fc1(x))))
    return model.output(model.norm(x))[:, -1]


@pytest.mark.parametrize("layers", ["none", "everything"])
def test_logits_and_gradients_are_those_of_an_ordinary_decoder(layers):
    torch.manual_seed(0)
    model = make_model(replace(TINY, decompose=layers, rank=0.5)).double()
    split = division_split(7, 0.8, 0, CPU)
    results = []
    for forward in (model, lambda tokens: plain_logits(model, tokens)):
        model.zero_grad()
        logits = forward(split.train_tokens)
        nn.functional.cross_entropy(logits, split.train_quotients).backward()
        results.append((logits, [parameter.grad.clone() for parameter in model.parameters()]))
    (ours, gradients), (plain, expected) = results
    torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-12)


def test_decomposition_at_full_rank_starts_from_the_same_function():
    models = []
    for layers in ("none", "everything"):
        torch.manual_seed(3)
        models.append(make_model(replace(TINY, decompose=layers)).double())
    tokens = division_split(7, 0.8, 0, CPU).test_tokens
    torch.testing.assert_close(models[0](tokens), models[1](tokens), rtol=0, atol=1e-5)
    recomposed = recompose_model(models[1])
    assert count(recomposed) == count(models[0])


def test_three_layers_work_as_two_do():
    torch.manual_seed(0)
    model = make_model(replace(TINY, layers=3)).double()
    tokens = division_split(7, 0.8, 0, CPU).test_tokens
    torch.testing.assert_close(model(tokens), plain_logits(model, tokens), rtol=1e-11, atol=1e-12)


# --- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_parses_to_itself(name):
    options = parse(["--preset", name])
    assert options.settings == PRESETS[name]
    assert options.overrides == {}


def test_presets_of_the_paper_are_its_section_4():
    steps = {PRESETS[n].train_fraction: PRESETS[n].max_steps for n in PRESETS if "paper" in n}
    assert steps == {0.5: 10**6, 0.65: 10**5, 0.8: 10**4}
    for name in ("paper", "paper65", "paper80", "cpu"):
        settings = PRESETS[name]
        assert (settings.beta1, settings.beta2, settings.weight_decay) == (0.9, 0.98, 0.0)
        assert (settings.learning_rate, settings.batch_size) == (1e-3, 512)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--p", "9"], "p is 9; expected an odd prime"),
        (["--heads", "3"], "d_model is 128 and heads is 3"),
        (["--train-fraction", "1"], "train_fraction is 1.0 and p is 97"),
        (["--train-measured", "9000"], "train_measured is 9000; expected 1 to 7449"),
        (["--rank", "0"], "rank is 0.0"),
        (["--decompose", "heads"], "invalid choice: 'heads'"),
        (["--layers", "0"], "layers is 0"),
        (["--warmup-steps", "-1"], "warmup_steps is -1"),
    ],
)
def test_wrong_settings_are_refused_by_name(argv, message, capsys):
    with pytest.raises(SystemExit):
        parse(argv)
    assert message in capsys.readouterr().err


def test_a_folder_of_data_is_refused(tmp_path, capsys):
    for command in (main, study):
        assert command(["--out", str(tmp_path), "--data", str(tmp_path)]) == 1
        assert "preset cpu with these options reads no folder" in capsys.readouterr().err


def test_the_learning_rate_warms_up():
    rates = [warmed_up(PRESETS["paper"], step) for step in (0, 4, 9, 100)]
    assert rates == pytest.approx([1e-4, 5e-4, 1e-3, 1e-3])


# --- what a GPU would be given -----------------------------------------------------------------


@pytest.mark.parametrize("layers", ["none", "everything"])
def test_a_step_reads_no_number(layers, tmp_path):
    options = replace(
        parse(["--device", "cpu"]), settings=replace(TINY, decompose=layers, rank=0.5)
    )
    task = make_task(options)
    updates = Updates(task.loss, task.optimizer, task.batches, task.rate, CPU)
    updates.run(0, 1)
    with NoReads():
        updates.one()


@pytest.mark.parametrize("layers", ["none", "everything"])
def test_nothing_of_a_step_crosses_between_devices(layers):
    """Tensors on the meta device have no numbers; none on the host is taken along."""
    model = make_model(replace(TINY, decompose=layers, rank=0.5)).to("meta")
    split = Split(*(x.to("meta") for x in division_split(7, 0.8, 0, CPU)))
    indices = torch.zeros(8, dtype=torch.int64, device="meta")
    with Apart():
        quotient_loss(model, split, indices).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# --- runs --------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
SMALL = [
    *("--p", "7", "--d-model", "16", "--heads", "2", "--d-mlp", "32", "--batch-size", "8"),
    *("--max-steps", "60", "--points", "20", "--checkpoint-every", "25", "--device", "cpu"),
    *("--train-measured", "none"),
]


def test_the_command_leaves_a_run(tmp_path):
    command = [sys.executable, "-m", "experiments.decomposed_division", "--out", str(tmp_path)]
    command += [*SMALL, "--decompose", "all", "--rank", "0.5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "decomposed_division").glob("*/seed0")
    summary = json.loads((folder / "summary.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [rows[0]["step"], rows[-1]["step"]] == [0, summary["steps"]]
    assert summary["final"]["test_accuracy"] == rows[-1]["test_accuracy"]
    # Layers have the names of the baseline's, so that the two can be compared.
    assert summary["shapes"]["blocks.1.fc1.weight"] == [32, 16]
    assert rows[0].keys() >= {"stable_rank/blocks.1.fc1.weight", "train_loss", "train_accuracy"}
    assert re.search(r"\d+ parameters, \d+ steps", done.stdout)


def test_the_monitor_watches_the_same_matrices_with_and_without():
    names = [
        [matrix.name for matrix in make_monitor(make_model(settings), None).matrices]
        for settings in (TINY, replace(TINY, decompose="all", rank=0.5))
    ]
    assert names[0] == names[1]
    assert len(names[0]) == 2 + 2 * 4 + 1


@pytest.mark.slow
def test_a_study_trains_what_is_missing_and_tells_what_failed(tmp_path, capsys, monkeypatch):
    """The whole way, with arms small enough for a test."""
    arguments = ["--preset", "cpu", "--seeds", "1", "--out", str(tmp_path), "--device", "cpu"]
    names = (word.removeprefix("--").replace("-", "_") for word in SMALL[::2])
    values = dict(zip(names, SMALL[1::2], strict=True))
    del values["device"]

    def arms(preset: str, layers: Any) -> list[Any]:
        return [
            replace(arm, overrides={**arm.overrides, **values})
            for arm in arms_of(preset, layers)[:3]
        ]

    monkeypatch.setattr("experiments.decomposed_division.study.arms_of", arms)
    # The third arm cannot run: its folder is of other settings.
    third = arms("cpu", None)[2]
    argv = ["--preset", "cpu", "--seed", "0", "--out", str(tmp_path), "--device", "cpu"]
    broken = run_folder("decomposed_division", parse([*argv, *third.argv()]))
    broken.mkdir(parents=True)
    (broken / "config.json").write_text('{"settings": {}}')
    assert study(arguments) == 1
    folder = tmp_path / "decomposed_division/study-cpu"
    summary = json.loads((folder / "summary.json").read_text())
    assert [arm["label"] for arm in summary["arms"]] == ["baseline", "all 1"]
    assert len(summary["claims"]) == 7
    assert summary["failed"] == ["all 0.75, seed 0"]
    for name in ("accuracy", "ranks", "stable_ranks"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 10_000
    printed = capsys.readouterr()
    assert "3 of 3 runs to train" in printed.out
    assert "steps to 1 % gap" in printed.out
    assert "failed: all 0.75, seed 0" in printed.err
    assert "holds a run with other settings" in broken.with_name("seed0.log.txt").read_text()
    # What is left to train a second time is that run.
    (broken / "config.json").unlink()
    assert study(arguments) == 0
    assert "1 of 3 runs to train" in capsys.readouterr().out
