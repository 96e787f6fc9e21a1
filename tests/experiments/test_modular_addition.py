"""The experiment kit and the modular addition experiment, from the command line to the figures."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from matplotlib.image import imread
from scipy.stats import spearmanr
from spectral_monitor.monitor import SpectralMonitor

from experiments.kit import run_folder
from experiments.kit.checkpoint import load_checkpoint, save_checkpoint, seed_everything
from experiments.kit.claims import Claim
from experiments.kit.correlation import rank_correlation
from experiments.kit.options import Options, parse_options
from experiments.kit.table import format_table
from experiments.modular_addition import train
from experiments.modular_addition.claims import (
    EMBEDDING_TO_ATTENTION,
    check_claims,
    check_control,
)
from experiments.modular_addition.compare import compare
from experiments.modular_addition.data import addition_split
from experiments.modular_addition.history import History
from experiments.modular_addition.model import AdditionTransformer, sinusoids
from experiments.modular_addition.presets import PRESETS, Settings
from experiments.modular_addition.train import cross_entropy, make_monitor, validate, warmed_up
from tests.support.device_steps import LateStreams, as_device

CPU = torch.device("cpu")


def parse(*argv: str) -> Options[Settings]:
    return parse_options(PRESETS, prog="test", description="test", default_preset="demo", argv=argv)


# --- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_parses_to_itself(name):
    options = parse("--preset", name)
    assert options.settings == PRESETS[name]
    assert options.overrides == {}


def test_overrides_replace_fields_of_the_preset():
    options = parse("--preset", "demo", "--weight-decay", "0", "--max-steps", "2500", "--seed", "3")
    assert options.settings == replace(PRESETS["demo"], weight_decay=0.0, max_steps=2500)
    assert options.overrides == {"weight_decay": 0.0, "max_steps": 2500}
    assert options.seed == 3


def test_an_override_equal_to_the_preset_is_none():
    assert parse("--weight-decay", "1").overrides == {}


def test_boolean_and_choice_overrides():
    options = parse("--no-stop-when-generalized", "--positions", "sinusoidal")
    assert options.settings.stop_when_generalized is False
    assert options.settings.positions == "sinusoidal"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--wieght-decay", "0"], "unrecognized arguments: --wieght-decay"),
        (["--weight", "0"], "unrecognized arguments: --weight"),
        (["--preset", "huge"], "invalid choice: 'huge'"),
        (["--max-steps", "many"], "invalid int value: 'many'"),
        (["--positions", "rotary"], "invalid choice: 'rotary'"),
        (["--max-steps", "0"], "max_steps is 0; expected at least 1"),
        (["--train-fraction", "1"], "train_fraction is 1.0 and p is 59"),
        (["--heads", "3"], "d_model is 128 and heads is 3"),
        (["--device", "abacus"], "--device abacus: expected auto, cpu or cuda"),
        (["--resume", "--fresh"], "not allowed with argument"),
    ],
)
def test_wrong_command_lines_are_refused_by_name(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_optional_fields_take_none():
    @dataclass(frozen=True)
    class Preset:
        limit: int | None = 5

    def limit(*argv: str) -> int | None:
        options = parse_options(
            {"a": Preset()}, prog="test", description="", default_preset="a", argv=argv
        )
        return options.settings.limit

    assert limit("--limit", "none") is None
    assert limit("--limit", "7") == 7
    assert limit() == 5


# --- run folders -------------------------------------------------------------------------------


def test_overrides_have_folders_of_their_own(tmp_path):
    def folder(*argv: str) -> Path:
        return run_folder.run_folder("x", parse("--out", str(tmp_path), *argv))

    assert folder() == tmp_path / "x" / "demo" / "seed0"
    assert folder("--weight-decay", "0", "--seed", "1") == (
        tmp_path / "x" / "demo+weight_decay=0.0" / "seed1"
    )
    assert folder("--p", "7", "--heads", "2") == folder("--heads", "2", "--p", "7")


def test_config_says_what_was_run_and_names_no_place(tmp_path):
    folder = run_folder.open_run_folder("x", parse("--out", str(tmp_path), "--p", "7"))
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["p"] == 7
    assert config["overrides"] == {"p": 7}
    assert config["versions"]["torch"] == torch.__version__
    assert str(tmp_path) not in (folder / "config.json").read_text()


def test_a_folder_with_other_settings_is_refused(tmp_path):
    options = parse("--out", str(tmp_path))
    run_folder.open_run_folder("x", options)
    changed = replace(options, settings=replace(options.settings, d_mlp=256))
    with pytest.raises(ValueError, match="d_mlp: 512 there, 256 now"):
        run_folder.open_run_folder("x", changed)
    run_folder.open_run_folder("x", replace(changed, existing="fresh"))


@pytest.mark.parametrize(
    ("existing", "finished", "kept"),
    [
        ("resume", False, True),
        ("resume", True, True),
        ("again", False, True),
        ("again", True, False),
        ("fresh", False, False),
    ],
)
def test_what_is_deleted_before_a_run(tmp_path, existing, finished, kept):
    options = parse("--out", str(tmp_path))
    folder = run_folder.open_run_folder("x", options)
    (folder / "metrics.jsonl").write_text("{}\n")
    if finished:
        run_folder.write_json(folder / "summary.json", {})
    run_folder.open_run_folder("x", replace(options, existing=existing))
    assert (folder / "metrics.jsonl").exists() == kept


def test_a_folder_that_is_not_ours_is_never_deleted(tmp_path):
    options = parse("--out", str(tmp_path), "--fresh")
    folder = run_folder.run_folder("x", options)
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not a run folder"):
        run_folder.open_run_folder("x", options)
    assert (folder / "thesis.tex").exists()


# --- checkpoints -------------------------------------------------------------------------------


def test_a_checkpoint_brings_all_generators_back(tmp_path):
    def draw() -> list[float]:
        return [random.random(), np.random.rand(), np.random.randn(), torch.rand(()).item()]

    seed_everything(5)
    np.random.randn()  # leaves a second normal in the cache, part of the state
    save_checkpoint(tmp_path / "c.pt", {"step": 3})
    expected = draw()
    draw()
    assert load_checkpoint(tmp_path / "c.pt", CPU) == {"step": 3}
    assert draw() == expected


def test_seeds_repeat_and_differ():
    def draw(seed: int) -> list[float]:
        seed_everything(seed)
        return [random.random(), np.random.rand(), torch.rand(()).item()]

    assert draw(1) == draw(1)
    assert all(a != b for a, b in zip(draw(1), draw(2), strict=True))


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "c.pt", {"step": 3})
    with pytest.raises(AttributeError):
        save_checkpoint(tmp_path / "c.pt", {"step": 4, "broken": lambda: None})
    assert load_checkpoint(tmp_path / "c.pt", CPU) == {"step": 3}


def test_no_checkpoint_is_none(tmp_path):
    assert load_checkpoint(tmp_path / "c.pt", CPU) is None


# --- claims and tables -------------------------------------------------------------------------


def test_claims_are_json_even_with_nan():
    claim = Claim("c", "s", [1.0], {"a": float("nan"), "b": (float("inf"), 2.0)}, False)
    row = claim.to_dict()
    assert row["measured"] == {"a": None, "b": [None, 2.0]}
    json.dumps(row, allow_nan=False)


def test_table_columns_line_up():
    text = format_table(["matrix", "rank"], [["a", "1.5"], ["longer", "10"]])
    assert text.splitlines() == ["matrix  rank", "------  ----", "a        1.5", "longer    10"]
    with pytest.raises(ValueError, match="1 cells under a header of 2"):
        format_table(["a", "b"], [["x"]])


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

ROOT = Path(__file__).parents[2]
SMALL = [
    *("--p", "7", "--d-model", "16", "--heads", "2", "--d-mlp", "32"),
    *("--max-steps", "300", "--no-stop-when-generalized", "--device", "cpu"),
    *("--checkpoint-every", "50", "--validate-every", "7"),
]


def command(out: Path) -> list[str]:
    return [sys.executable, "-m", "experiments.modular_addition", "--out", str(out), *SMALL]


def launch(out: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command(out), cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    return stdout


def folder_in(out: Path) -> Path:
    (folder,) = (out / "modular_addition").glob("*/seed0")
    return folder


def kill_at(process: subprocess.Popen[str], out: Path, steps: int) -> None:
    """SIGKILL once ``steps`` steps are recorded."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        metrics = list(out.glob("modular_addition/*/seed0/metrics.jsonl"))
        if metrics and metrics[0].read_bytes().count(b"\n") >= steps:
            break
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"


def recorded(folder: Path) -> list[dict[str, float]]:
    """The recorded frames without the one number that is a time."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "overhead"} for row in rows]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> tuple[Path, str]:
    """The folder of an uninterrupted small run, and what it printed."""
    out = tmp_path_factory.mktemp("whole")
    stdout = finish(launch(out))
    return folder_in(out), stdout


@pytest.mark.slow
def test_a_killed_run_continues_bit_for_bit(whole_run, tmp_path):
    whole, _ = whole_run
    # Once before the first checkpoint, then between the second and the third.
    kill_at(launch(tmp_path), tmp_path, 20)
    kill_at(launch(tmp_path), tmp_path, 125)
    folder = folder_in(tmp_path)
    checkpoint = load_checkpoint(folder / "checkpoint.pt", CPU)
    assert checkpoint is not None
    assert checkpoint["step"] in (50, 100, 150)
    finish(launch(tmp_path))

    assert [row["step"] for row in recorded(folder)] == list(range(301))
    assert recorded(folder) == recorded(whole)
    assert (folder / "spectra.bin").read_bytes() == (whole / "spectra.bin").read_bytes()
    ends = [load_checkpoint(each / "checkpoint.pt", CPU) for each in (folder, whole)]
    assert_same(*[{k: v for k, v in end.items() if k != "seconds"} for end in ends if end])


def assert_same(a: object, b: object) -> None:
    """Equality through nested containers, tensors bit by bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    else:
        assert a == b


def test_a_run_leaves_everything_it_names(whole_run):
    folder, stdout = whole_run
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 300
    assert summary["overrides"]["p"] == 7
    assert {row["holds"] for row in summary["claims"]} <= {True, False}
    assert len(summary["claims"]) == 6
    for row in summary["claims"]:
        assert row.keys() == {"claim", "source", "expected", "measured", "holds"}
        assert row["claim"] in stdout
    for name in ("embedding", "attention.value", "mlp_out -> unembedding"):
        assert f"\n{name} " in stdout

    reader = re.search(r'pandas.read_json\("(.*)", lines=True\)', stdout)
    assert reader is not None
    table = pandas.read_json(reader.group(1), lines=True)
    assert len(table) == 301
    final = table["validation_accuracy"].dropna().iloc[-1]
    assert final == summary["final"]["validation_accuracy"]


def test_pictures_and_report_show_something(whole_run):
    folder, _ = whole_run
    picture = imread(folder / "figures/figure2.png")
    # Four panels: every quarter of the width holds more than its background.
    for quarter in np.array_split(picture[..., :3], 4, axis=1):
        assert len(np.unique(quarter.reshape(-1, 3), axis=0)) > 50
    report = (folder / "report.html").read_text()
    assert "Modular addition mod 7" in report
    assert json.loads((folder / "summary.json").read_text())["claims"][0]["claim"] in report


def test_a_finished_run_is_shown_and_not_trained(whole_run):
    folder, first = whole_run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
    before.pop(folder / "config.json")
    stdout = finish(launch(folder.parents[2]))
    assert "is finished" in stdout
    assert first.strip() in stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_two_runs_in_one_figure(whole_run, tmp_path, capsys):
    folder, _ = whole_run
    compare({"first": folder, "second": folder}, tmp_path / "both")
    summary = json.loads((tmp_path / "both/summary.json").read_text())
    assert list(summary["runs"]) == ["first", "second"]
    assert [claim["run"] for claim in summary["claims"]] == ["first"] * 6 + ["second"] * 6
    assert (tmp_path / "both/figures/compare.png").stat().st_size > 10_000
    assert (tmp_path / "both/report.html").exists()


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
