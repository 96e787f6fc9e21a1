"""Where frames go: recorders, and experiment trackers by duck type.

Frames go in order, each when its numbers have arrived.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from spectral_monitor.step.frame import SpectralFrame, alignment_score, pair_name, rows_by_kind

from spectral_kernels.entry.results import METRICS

_AVERAGED = ("effective_rank", "normalized_effective_rank", "stable_rank", "spectral_norm")


@runtime_checkable
class Sink(Protocol):
    """Something that keeps frames."""

    def write(self, frame: SpectralFrame) -> None:
        """Take one frame."""
        ...

    def close(self) -> None:
        """No further frame comes."""
        ...


def as_sinks(recorder: Any) -> list[Sink]:
    """Sinks for what a caller gave: a sink, a logger with ``.log``, a list of them, ``None``."""
    if recorder is None:
        return []
    if isinstance(recorder, (list, tuple)):
        return [sink for item in recorder for sink in as_sinks(item)]
    if isinstance(recorder, Sink):
        return [recorder]
    if callable(getattr(recorder, "log", None)):
        return [LoggerSink(recorder)]
    raise TypeError(
        "recorder: expected a Recorder, an object with .log(dict, step=) or a list of these, "
        f"got {type(recorder).__name__}"
    )


class LoggerSink:
    """Sends frames to anything with ``.log(dict, step=)``, such as a wandb run.

    Keys are ``spectral/<metric>/<layer>``. Trackers slow down with thousands of keys, so by
    default there is one value per family of matrices (``spectral/stable_rank/linear``) and one
    over all (``.../all``); ``per_layer=True`` sends every matrix and pair as well.

    Args:
        logger: the object whose ``log`` is called, once per frame.
        per_layer: every layer too.
        prefix: first part of the keys.

    Example:
        >>> class Tracker:  # anything with this method, such as a run of wandb
        ...     def log(self, values, step):
        ...         print(step, sorted(values)[0])
        >>> logger = sk.LoggerSink(Tracker(), per_layer=True)
        >>> frame = sk.SpectralMonitor(torch.nn.Linear(4, 3), every=1, recorder=logger).step(0)
        0 spectral/agreement_score/all
    """

    def __init__(self, logger: Any, *, per_layer: bool = False, prefix: str = "spectral") -> None:
        self._log = logger.log
        self._per_layer = per_layer
        self._prefix = prefix

    def write(self, frame: SpectralFrame) -> None:
        """Log one frame."""
        values = dict(group_averages(frame))
        if self._per_layer:
            values.update(metric_values(frame))
        named = {f"{self._prefix}/{key}": value for key, value in values.items()}
        if math.isfinite(frame.overhead):
            named[f"{self._prefix}/overhead"] = frame.overhead
        self._log({**frame.scalars, **named}, step=frame.step)

    def close(self) -> None:
        """Do nothing: the logger belongs to the caller."""


def metric_values(frame: SpectralFrame) -> dict[str, float]:
    """``<metric>/<layer>`` -> value for every scalar of a frame's matrices and pairs."""
    values: dict[str, float] = {}
    for name, row in frame.matrices.items():
        for metric in METRICS:
            values[f"{metric}/{name}"] = getattr(row, metric)
        values[f"normalized_effective_rank/{name}"] = row.normalized_effective_rank
    for pair, diagonal in frame.alignment.items():
        values[f"alignment_score/{pair_name(pair)}"] = alignment_score(diagonal)
    for name, agreement in frame.agreement.items():
        values[f"agreement_score/{name}"] = alignment_score(agreement)
    return values


def group_averages(frame: SpectralFrame) -> dict[str, float]:
    """``<metric>/<family>`` -> mean over its finite matrices, and ``<metric>/all``."""
    averages: dict[str, float] = {}
    for metric in _AVERAGED:
        for kind, rows in rows_by_kind(frame.matrices).items():
            averages[f"{metric}/{kind}"] = _mean([float(getattr(row, metric)) for row in rows])
        averages[f"{metric}/all"] = frame.mean(metric)
    for metric, diagonals in (
        ("alignment_score", list(frame.alignment.values())),
        ("agreement_score", list(frame.agreement.values())),
    ):
        if diagonals:
            averages[f"{metric}/all"] = _mean([alignment_score(d) for d in diagonals])
    return averages


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


class Delivery:
    """Hands frames to sinks.

    Args:
        sinks: each gets every frame.
    """

    def __init__(self, sinks: list[Sink]) -> None:
        self._sinks = sinks
        self._waiting: deque[SpectralFrame] = deque()

    @property
    def is_recording(self) -> bool:
        """Whether there is a sink that is not closed."""
        return bool(self._sinks)

    def take(self, frame: SpectralFrame) -> None:
        """Write a frame as soon as its numbers are here: now, or at a later call."""
        if self._sinks:
            self._waiting.append(frame)
        self.deliver()

    def deliver(self, *, wait: bool = False) -> None:
        """Write what has arrived; with ``wait`` everything, which waits for the device."""
        while self._waiting and (wait or self._waiting[0].arrived):
            frame = self._waiting.popleft()
            for sink in self._sinks:
                sink.write(frame)

    def close(self) -> None:
        """Write everything, and close the sinks; frames that come later go nowhere."""
        try:
            self.deliver(wait=True)
        finally:
            sinks, self._sinks = self._sinks, []
            self._waiting.clear()
            for sink in sinks:
                sink.close()
