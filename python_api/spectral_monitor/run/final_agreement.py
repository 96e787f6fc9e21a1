"""Agreement with the end of a run: a second pass over its saved vectors.

While a run goes on, its last step is not known. A monitor with ``reference="final"`` saves the
leading vectors of every measured step (`run.saved_vectors`), and `agreement_with_final`
compares them when the run is over. What it finds is kept beside them, and `load_run` shows it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from spectral_monitor.run.files import write_atomically
from spectral_monitor.run.reader import Run, load_run, recorded_spectra
from spectral_monitor.run.saved_vectors import FINAL_AGREEMENT, FINAL_GROUPS, SavedVectors
from spectral_monitor.step.clusters import clusters_against
from spectral_monitor.step.frame import Array

from spectral_kernels.alignment.clusters import cluster_agreement_list


def agreement_with_final(run_dir: str | os.PathLike[str], step: int | None = None) -> Run:
    """Compare the vectors of every saved step with those of the last one.

    Two bytes for each saved number are read, once; the result is written to
    ``final_agreement.npz`` in the folder.

    Args:
        run_dir: the folder of a run whose monitor had ``reference="final"``.
        step: another saved step to compare with.

    Returns:
        The run, with ``agreement``, ``subspace_agreement`` and ``identifiable`` against that step.

    Raises:
        FileNotFoundError: no vectors were saved.
        ValueError: none of this step.

    Example:
        >>> run = sk.agreement_with_final("runs/final")  # its monitor had reference="final"
        >>> np.allclose(run.agreement["0.weight"][-1], 1, atol=1e-2)
        True
    """
    path = Path(run_dir)
    saved = SavedVectors(path)
    if not len(saved.steps):
        raise ValueError(f"{path}: the vectors of no step were saved")
    if step is not None and step not in saved.steps:
        raise ValueError(
            f"{path}: no vectors of step {step}; there are {len(saved.steps)} steps from "
            f"{saved.steps[0]} to {saved.steps[-1]}"
        )
    wanted, spectra = recorded_spectra(path, saved.steps if step is None else np.array([step]))
    run = load_run(path)
    names = [name for name in saved.names if name in run.singular_values]
    # The writer saves vectors first: they may be one step ahead of the values.
    at = {int(number): t for t, number in enumerate(run.steps)}
    steps = [(i, at[int(number)]) for i, number in enumerate(saved.steps) if int(number) in at]
    compared = _compared(run, saved, names, steps, spectra, wanted)
    content: dict[str, Any] = {
        "names": np.array(names),
        "steps": np.array([run.steps[t] for _, t in steps], dtype=np.int64),
        "reference_step": np.int64(wanted),
        **{
            f"{kind}_{i}": np.array(compared[kind][name])
            for i, name in enumerate(names)
            for kind in FINAL_GROUPS
        },
    }
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    write_atomically(path / FINAL_AGREEMENT, buffer.getvalue())
    return load_run(path)


def _compared(
    run: Run,
    saved: SavedVectors,
    names: Sequence[str],
    steps: Sequence[tuple[int, int]],
    spectra: Mapping[str, tuple[Array, Array]],
    wanted: int,
) -> dict[str, dict[str, list[Array]]]:
    """Group of `FINAL_GROUPS` -> matrix -> an array (k,) for each step.

    Args:
        names: of the matrices.
        steps: (index among the saved steps, index in the run) of each.
        spectra: singular values and bounds at the step that is compared with.
        wanted: that step.
    """
    clusters = {
        name: clusters_against(
            run.singular_values[name],
            run.value_bounds(name),
            *spectra[name],
            rank=min(saved.shape(name)),
        )
        for name in names
    }
    final = saved.read(int(np.flatnonzero(saved.steps == wanted)[0]))
    compared: dict[str, dict[str, list[Array]]] = {
        kind: {name: [] for name in names} for kind in FINAL_GROUPS
    }
    for i, t in steps:
        now = saved.read(i)
        pairs = [(now[name], final[name]) for name in names]
        at_t = [[x[t, : now[name].Vh.shape[0]] for x in clusters[name]] for name in names]
        agreement = cluster_agreement_list(pairs, [first for first, _ in at_t])
        groups = (*agreement, [alone for _, alone in at_t])
        for kind, values in zip(FINAL_GROUPS, groups, strict=True):
            for name, value in zip(names, values, strict=True):
                compared[kind][name].append(value.numpy())
    return compared


def is_stale(run_dir: str | os.PathLike[str]) -> bool:
    """Whether vectors were saved after the agreement was computed, or it never was."""
    path = Path(run_dir)
    try:
        saved = SavedVectors(path)
    except FileNotFoundError:
        return False
    if not (path / FINAL_AGREEMENT).exists():
        return len(saved.steps) > 0
    with np.load(path / FINAL_AGREEMENT) as content:
        complete = all(f"{kind}_0" in content for kind in FINAL_GROUPS)
        return not (complete and np.array_equal(content["steps"], saved.steps))
