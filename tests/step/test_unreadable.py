"""A matrix that cannot be read is a row that says why; it comes back, and others are measured."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.figures.report import write_report
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.run.reader import load_run
from spectral_monitor.run.recorder import Recorder
from spectral_monitor.step.frame import SpectralFrame
from spectral_monitor.step.row_table import NOT_FINITE, reasons_of
from torch import Tensor, nn

from tests.support.device_steps import LateStreams, as_device
from tests.support.monitored import due
from tests.support.odd_tensors import REFUSED, WITHOUT_VALUES, one_rank

watching = partial(SpectralMonitor, every=1)
METHODS = ("tracked", "exact", "randomized")
NAMES = ["0.weight", "2.weight"]


@pytest.fixture
def rank() -> Iterator[None]:
    with one_rank():
        yield


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 4, bias=False))


def quietly(watch: SpectralMonitor) -> SpectralFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return due(watch.step())


def assert_readable_but(frame: SpectralFrame, name: str, told: str) -> None:
    for other, row in frame.matrices.items():
        assert row.finite == (other != name)
        assert bool(row.reason) == (other == name)
        assert np.isfinite(row.singular_values).all() == (other != name)
    row = frame.matrices[name]
    assert told in row.reason
    assert np.isnan([row.stable_rank, row.effective_rank, *row.bounds.values()]).all()
    assert row.shape == (6, 4)


# What becomes of a parameter that stays: kind -> (make it so, what the row says).
KINDS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    **{n: (f, "") for n, (f, _, _) in REFUSED.items() if n not in ("lazy", "complex")},
    **{n: (f, "") for n, (f, _) in WITHOUT_VALUES.items()},
    "placeholder": (lambda A: A.new_empty(0), "is (0,) now: a shard, or a placeholder"),
    "flat shard": (lambda A: A.flatten()[:12].clone(), "is (12,) now: a shard, or a placeholder"),
    "ZeRO-3": (lambda A: zero_3(A), "partitioned by ZeRO-3: 6 x 4 in all"),
    "other shape": (lambda A: A.mT.clone(), "was (6, 4) when the monitor was made and is (4, 6)"),
    "integers": (lambda A: A.char(), "dtype torch.int8 is not float16"),
}


def zero_3(A: Tensor) -> Tensor:
    x = A.new_empty(0)
    x.ds_shape = A.shape  # type: ignore[attr-defined]
    return x


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_row_says_why_and_the_others_are_measured(kind: str, method: Any) -> None:
    make, told = KINDS[kind]
    weights: dict[str, Any] = {"a": torch.randn(6, 4), "b": torch.randn(4, 6)}
    same = dict(weights)
    watch = watching(weights, method=method, pairs=[("a", "b")])
    other = watching(same, method=method, pairs=[("a", "b")])
    for _ in range(2):
        quietly(watch)
        quietly(other)
    good = weights["a"]
    weights["a"] = make(good.clone())
    frame = quietly(watch)
    assert_readable_but(frame, "a", told)
    assert np.isnan(frame.alignment["a", "b"]).all()
    assert np.isnan(frame.agreement["a"]).all()
    assert np.isfinite(frame.agreement["b"]).all()
    assert "1 of them cannot be read now:" in watch.explain()
    assert frame.matrices["a"].reason in watch.explain()
    # It is what it was: so are its numbers, and nothing was lost on the way.
    weights["a"] = good
    back, expected = quietly(watch), quietly(other)
    assert all(row.finite and not row.reason for row in back.matrices.values())
    for name, row in expected.matrices.items():
        np.testing.assert_allclose(back.matrices[name].singular_values, row.singular_values,
                                   rtol=1e-5)  # fmt: skip
        np.testing.assert_allclose(back.agreement[name], 1.0, atol=1e-4)
    assert watch.resolves == other.resolves
    assert "cannot be read" not in watch.explain()


@pytest.mark.parametrize("kind", KINDS)
def test_its_update_and_gradient_are_not_known_either(kind: str) -> None:
    model = mlp()
    weights: dict[str, Any] = dict(model.named_parameters())
    watch = watching(weights, watch=("weights", "updates", "gradients"))
    for _ in range(2):
        model(torch.ones(3, 4)).sum().backward()
        quietly(watch)
    weights["0.weight"] = KINDS[kind][0](weights["0.weight"].detach().clone())
    rows = quietly(watch).matrices
    for change in ("update", "gradient"):
        assert not rows[f"0.weight[{change}]"].finite
        assert rows[f"0.weight[{change}]"].reason
        assert rows[f"2.weight[{change}]"].finite


@pytest.mark.parametrize("method", METHODS)
def test_fully_shard_after_the_monitor_was_made(method: Any, rank: None) -> None:
    """Reading a DTensor where its values are not ended the process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = mlp()
    watch = watching(model, method=method)
    before = quietly(watch)
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model[0], mesh=mesh)
    with pytest.warns(UserWarning, match=r"0\.weight: is a DTensor.*; unshard\(\) .* every rank"):
        frame = due(watch.step())
    assert_readable_but(frame, "0.weight", "is a DTensor")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.step()
    model[0].unshard()
    frame = quietly(watch)
    for name in NAMES:
        assert not frame.matrices[name].reason
        np.testing.assert_allclose(frame.matrices[name].singular_values,
                                   before.matrices[name].singular_values, rtol=1e-5)  # fmt: skip
    model[0].reshard()
    assert_readable_but(quietly(watch), "0.weight", "is a DTensor")


def test_what_is_sharded_when_the_monitor_is_made_is_skipped_with_the_reason(rank: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = mlp()
    fully_shard(model[0], mesh=init_device_mesh("cpu", (1,)))
    watch = watching(model, pairs=None)
    assert [m.name for m in watch.matrices] == ["2.weight"]
    (row,) = watch.skipped
    assert row.reason.startswith("is a DTensor, whose values are shared out among ranks")


def test_memory_that_is_freed_between_uses() -> None:
    """As FSDP does, which gives it back for the forward pass."""
    model = mlp()
    watch = watching(model)
    first = quietly(watch)
    values, storage = model[0].weight.detach().clone(), model[0].weight.untyped_storage()
    for _ in range(2):
        storage.resize_(0)
        assert_readable_but(quietly(watch), "0.weight", "its memory was freed")
        storage.resize_(values.nbytes)
        with torch.no_grad():
            model[0].weight.copy_(values)
        row = quietly(watch).matrices["0.weight"]
        np.testing.assert_allclose(row.singular_values, first.matrices["0.weight"].singular_values,
                                   rtol=1e-5)  # fmt: skip


def test_a_warning_for_each_reason_and_no_second_one() -> None:
    weights: dict[str, Any] = {name: torch.randn(6, 4) for name in "abc"}
    watch = watching(weights, pairs=None)
    weights["a"], weights["b"] = (torch.empty(0) for _ in range(2))
    with pytest.warns(UserWarning, match=r"a and 1 more: its shape was \(6, 4\)") as caught:
        watch.step()
    assert [w.filename for w in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.step()
    weights["c"] = torch.ones(6, 4).to_sparse()
    with pytest.warns(UserWarning, match="c: has layout") as caught:
        watch.step()
    assert len(caught) == 1


def test_nan_has_a_reason_too() -> None:
    weights = {"a": torch.randn(6, 4), "b": torch.randn(4, 6)}
    weights["a"][0, 0] = torch.nan
    for method in METHODS:
        frame = quietly(watching(weights, method=method, pairs=None))  # type: ignore[arg-type]
        assert [row.reason for row in frame.matrices.values()] == [NOT_FINITE, ""]
        assert reasons_of(frame.matrices) == {"a": NOT_FINITE}


def test_updates_and_gradients_say_why_there_are_none() -> None:
    model = mlp()
    watch = watching(model, watch=["weights", "updates", "gradients"])

    def reasons() -> dict[str, str]:
        rows = quietly(watch).matrices
        assert all(row.finite != bool(row.reason) for row in rows.values())
        return reasons_of(rows)

    first, none = "no step before this one", "no gradient: before backward"
    found = reasons()
    assert list(found) == [f"{n}[{kind}]" for kind in ("update", "gradient") for n in NAMES]
    assert all(first in found[f"{n}[update]"] and none in found[f"{n}[gradient]"] for n in NAMES)
    model(torch.randn(3, 4)).sum().backward()
    assert reasons() == {}
    values, storage = model[0].weight.detach().clone(), model[0].weight.untyped_storage()
    storage.resize_(0)
    found = reasons()
    assert list(found) == ["0.weight", "0.weight[update]"]
    assert all("its memory was freed" in reason for reason in found.values())
    storage.resize_(values.nbytes)
    with torch.no_grad():
        model[0].weight.copy_(values + 1)
    frame = quietly(watch)
    # Since the last step at which it could be read: rank one, of ones.
    np.testing.assert_allclose(frame.matrices["0.weight[update]"].singular_values[0], 24**0.5,
                               rtol=1e-5)  # fmt: skip
    model[0].weight.grad = None
    assert list(reasons()) == ["0.weight[gradient]"]


def test_an_update_needs_two_steps_at_which_the_weight_was_read() -> None:
    weights: dict[str, Any] = {"a": torch.randn(6, 4), "b": torch.randn(4, 6)}
    watch = watching(weights, pairs=None, reference=None, watch=["weights", "updates"])
    good = weights["a"]
    weights["a"] = good.to_sparse()
    told = [["a", "a[update]", "b[update]"], ["a[update]"], []]
    for expected in told:
        found = reasons_of(quietly(watch).matrices)
        assert list(found) == expected
        weights["a"] = good
    assert all(row.finite for row in quietly(watch).matrices.values())


def test_a_step_of_a_device_is_waited_for_while_something_cannot_be_read() -> None:
    model, streams = mlp(), LateStreams()
    watch, plain = as_device(watching(model), streams), watching(model)

    def both() -> tuple[SpectralFrame, SpectralFrame]:
        with torch.no_grad():
            model[2].weight.add_(1e-3)
        return quietly(watch), quietly(plain)

    assert both()[0]._late is not None
    values, storage = model[0].weight.detach().clone(), model[0].weight.untyped_storage()
    storage.resize_(0)
    frame, expected = both()
    assert frame._late is None
    assert_readable_but(frame, "0.weight", "its memory was freed")
    assert "a step waits for its numbers: 0.weight: has a storage of 0 bytes" in watch.explain()
    watch.memory()
    storage.resize_(values.nbytes)
    with torch.no_grad():
        model[0].weight.copy_(values)
    for _ in range(3):
        frame, expected = both()
        assert frame._late is not None
        assert not reasons_of(frame.matrices)
        for name in NAMES:
            np.testing.assert_allclose(frame.matrices[name].singular_values,
                                       expected.matrices[name].singular_values,
                                       rtol=1e-5)  # fmt: skip


def test_the_run_folder_and_the_report_say_why(tmp_path: Path) -> None:
    weights: dict[str, Any] = {"a": torch.randn(6, 4), "b": torch.randn(4, 6)}
    watch = watching(weights, pairs=None, recorder=Recorder(tmp_path))
    good = weights["a"]
    for x in (good, good.to_sparse(), good.to_sparse(), good):
        weights["a"] = x
        frame = quietly(watch)
        assert frame.to_dict()["matrices"]["a"]["reason"] == frame.matrices["a"].reason
    watch.close()
    run = load_run(tmp_path)
    reason = "has layout torch.sparse_coo; expected a dense (strided) tensor: call .to_dense()"
    assert run.reasons == {1: {"a": reason}, 2: {"a": reason}}
    np.testing.assert_array_equal(run.scalars["not_finite"], [0, 1, 1, 0])
    np.testing.assert_array_equal(np.isnan(run.singular_values["a"]).all(axis=1),
                                  [False, True, True, False])  # fmt: skip
    pytest.importorskip("plotly")
    page = Path(write_report(tmp_path)).read_text()
    assert f"<td>a</td><td>1 to 2</td><td>2 of 4</td><td>{reason}</td>" in page


def test_the_table_has_the_reason() -> None:
    pytest.importorskip("pandas")
    weights: dict[str, Any] = {"a": torch.randn(6, 4), "b": torch.randn(4, 6)}
    watch = watching(weights, pairs=None)
    weights["a"] = torch.empty(0)
    table = quietly(watch).to_dataframe()
    assert set(table[table.matrix == "b"].reason) == {""}
    (told,) = set(table[table.matrix == "a"].reason)
    assert told.startswith("its shape was (6, 4)")
