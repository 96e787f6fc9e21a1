"""`SpectralMonitor`: the spectra of every weight matrix of a model, at every training step."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from spectral_monitor.cadence import Cadence
from spectral_monitor.device.capture import CAPTURED, is_being_captured
from spectral_monitor.explanation import explain, forecast_lines, recorded_lines
from spectral_monitor.measurement import Measurement
from spectral_monitor.memory import MemoryPlan
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.model.parameters import unwrap
from spectral_monitor.model.parametrized import Shown
from spectral_monitor.model.registry import MatrixRegistry, Skipped
from spectral_monitor.modes import uncollected
from spectral_monitor.pace import Pace
from spectral_monitor.pairs.ports import Pair, Rejected
from spectral_monitor.run.reader import with_recorded_run
from spectral_monitor.run.recorder import Recorder, saves_vectors
from spectral_monitor.run.saved_vectors import bytes_per_step
from spectral_monitor.run.sinks import Delivery, as_sinks
from spectral_monitor.state import STATE_VERSION, CopiedByState, check_state, matrices_state
from spectral_monitor.step.frame import SpectralFrame
from spectral_monitor.step.readings import not_readable
from spectral_monitor.step.reference import Given
from spectral_monitor.watch_plan import GivenPairs, watch_plan
from torch import Tensor, nn


class SpectralMonitor(CopiedByState):
    """Watches the weight matrices of a model while it trains.

    The model gains no hook and no attribute; its parameters are read when ``step`` is called. A
    decomposed layer (`spectral_kernels.DecomposedLayer`) is one matrix with the name and the shape
    that its weight would have, ``fc1.weight``, and k singular values; the product is not formed.

    It can be pickled and deep-copied, with its model, options and state: the monitor of
    ``copy.deepcopy((model, monitor))`` watches the copied model. Not with a recorder, of which
    there must not be two: a run is resumed with `state_dict`.

    Args:
        model: a module (compiled or wrapped for data parallelism too), or a mapping from names
            to tensors such as a state dict.
        method: "tracked": all singular values, from the vectors of the step before where they
            still hold, with a proved bound on every value (short sides above 384, on a GPU above
            1024: values from scratch, 100 leading vectors tracked); "exact": the same from
            scratch, to rounding; "randomized": k leading triplets, warm-started from the step
            before, with bounds for what they leave open.
        every: measure at steps that are multiples of this; 1 for every step.
        overhead: instead of ``every``, the share of the time that the monitor may take (0.05):
            measured as often as that allows, first at the first step, see `cadence`.
            ``monitor.every`` and ``frame.every`` tell the cadence, ``frame.overhead`` the share
            that it took. For a step that is left to a GPU this is the GPU's time, though it works
            beside training.
        k: for "exact", how many vectors take part in alignment and agreement (100); for
            "randomized", how many triplets are computed (32). For "tracked", None gives all
            values and compares 100 vectors; a number tracks so many leading triplets and computes
            nothing else, and ranks and norms then have bounds for what these leave open, wide
            ones where the spectrum is flat.
        tolerance: for "tracked", the largest bound of a singular value, relative to sigma_1, that
            may stand before more work is done, up to a new solution (1e-3). Bounds of leading
            triplets of a flat spectrum may exceed it: no work on them alone can lower these.
        include, exclude: patterns of names, with ``*`` and ``?``; see `monitor.explain()`.
        pairs: "auto": consecutive layers found from the structure of the model; what
            `spectral_kernels.trace` found in a forward pass; a list of (name, name of the next
            layer), also of single heads, ``("q.weight[head 2]", "k.weight[head 2]")``; or ``None``
            for no alignment. Halves and heads that meet are decomposed on their own, see ``parts``.
        reference: what ``frame.agreement`` compares singular vectors with. "init": the weights
            when the monitor was made; "previous": the last measured step (NaN at the first);
            "final": the last step of the run, for which the recorder saves the vectors of every
            measured step and `run.final_agreement` compares them when the run is over; the
            folder of such a run, for its last vectors; SVDs as a list in the order of
            ``monitor.matrices`` or by name; or ``None``.
        watch: "weights", and with them "updates" (since the last measured step) and
            "gradients", see `spectral_monitor.step.changes`.
        grad_scale: what gradients are multiplied by when ``step`` is called, where it comes before
            ``scaler.unscale_`` and ``scaler.step``: the ``torch.amp.GradScaler``, a number, or a
            function that returns it; their rows are divided by it.
        heads: attention heads, one number or {pattern: number}, where modules do not tell.
        recorder: a `Recorder`, anything with ``.log(dict, step=)``, or a list of these.
        registry: rules from parameters to matrices, see `model.registry.MatrixRegistry`.
        parametrized: what stands for a weight that its layer computes of others
            (`torch.nn.utils.parametrize`, spectral_norm, weight_norm, pruning; in a state dict by
            their names): "effective", the weight as evaluation would have it now, computed at every
            measured step without a power iteration or any other change of the module, as
            ``conv.weight``; or "raw", the parameter behind it, as ``conv.weight[raw]``. Where it
            cannot be computed, the raw one is shown and says why.
        config: of Hugging Face, an object or the dictionary of the ``config.json`` beside the
            weights: tells the heads of a state dict, see `model.config`. A module has its own.
        seed: of the random start of "randomized".

    Raises:
        ValueError: an unknown option, a pattern that fits nothing, a pair that does not chain,
            or a model without matrices.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Linear(32, 8))
        >>> monitor = sk.SpectralMonitor(model, every=10, recorder=sk.Recorder("runs/example"))
        >>> for step in range(20):
        ...     with torch.no_grad():  # in place of a training step
        ...         model[0].weight += 0.001
        ...     frame = monitor.step(step, loss=1 / (step + 1))  # None where the step is not due
        >>> monitor.close()
        >>> monitor.frame.step, list(monitor.frame.matrices)
        (10, ['0.weight', '1.weight'])
    """

    @uncollected()
    def __init__(
        self,
        model: nn.Module | Mapping[str, Tensor],
        *,
        method: Literal["tracked", "exact", "randomized"] = "tracked",
        every: int | None = None,
        overhead: float | None = None,
        k: int | None = None,
        tolerance: float | None = None,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        pairs: GivenPairs = "auto",
        reference: Given = "init",
        watch: Sequence[str] = ("weights",),
        grad_scale: Any = None,
        heads: int | Mapping[str, int] | None = None,
        recorder: Any = None,
        registry: MatrixRegistry | None = None,
        parametrized: Shown = "effective",
        config: Any = None,
        seed: int = 0,
    ) -> None:
        self._options = {n: x for n, x in locals().items() if n not in ("self", "model")}
        self._model = unwrap(model)
        self._cadence = Cadence(every, overhead)
        self._plan = watch_plan(
            self._model, include=include, exclude=exclude, pairs=pairs, heads=heads,
            registry=registry, parametrized=parametrized, config=config,
        )  # fmt: skip
        self._measurement = Measurement(
            self._plan, method=method, k=k, tolerance=tolerance, watch=watch, seed=seed,
            reference=with_recorded_run(reference), grad_scale=grad_scale, cadence=self._cadence,
        )  # fmt: skip
        self._reference = self._measurement.comparisons.reference
        self._pace = Pace(self._cadence, self._measurement.device)
        self._sinks = as_sinks(recorder)
        self._delivery = Delivery(self._sinks)
        self._saved_vectors = saves_vectors(self._sinks) if self._reference.wants_final else None
        self._next_step = 0
        self._began_at: int | None = None
        self._paused = 0
        self._is_resumed = False
        self._frame: SpectralFrame | None = None
        if not self._restored:
            self._measurement.start()

    @property
    def method(self) -> str:
        """How singular values are found, see the options."""
        return self._measurement.method

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """The matrices under watch, in order."""
        return tuple(self._plan.matrices)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Parameters (and gradients asked for) that are not watched, with the reason."""
        return (*self._plan.skipped, *self._measurement.comparisons.changes.skipped)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Pairs of layers under alignment."""
        return tuple(self._plan.pairs)

    @property
    def parts(self) -> tuple[Matrix, ...]:
        """Parts of matrices, such as heads, that pairs need the singular vectors of: measured with
        the matrices under watch, without rows in a frame."""
        return tuple(self._plan.parts)

    @property
    def rejected_pairs(self) -> tuple[Rejected, ...]:
        """Neighbouring layers that are not paired, with the reason."""
        return tuple(self._plan.rejected)

    @property
    def every(self) -> int:
        """Steps from one measurement to the next; with ``overhead``, as chosen so far."""
        return self._cadence.every

    @property
    def resolves(self) -> int:
        """How many matrices and parts were solved anew so far because tracking lost them (a jump of
        the weights, say); their first solution does not count. 0 for methods that do not track.
        Waits for steps that are still on their way from a GPU."""
        self._measurement.device.wait()
        return self._measurement.solver.resolves

    @property
    def frame(self) -> SpectralFrame | None:
        """The last frame, ``None`` before the first."""
        return self._frame

    def explain(self, *, full: bool = False) -> str:
        """What is watched and what is not, and why, as text.

        Repeated layers and experts are one row, ``layers.{0..41}.fc.weight``, unless ``full``.
        Also what chance would give for each comparison, the memory that is kept between steps
        (`memory`), whether a step waits for its numbers and why, and the cadence as chosen so far;
        before steps were timed, what a measurement will take by a dry run (`forecast`).

        Example:
            >>> monitor = sk.SpectralMonitor(torch.nn.Linear(4, 3), every=1)
            >>> print(monitor.explain().splitlines()[0])
            1 matrices:
        """
        memory, measurement = self.memory(), self._measurement
        return "\n".join(
            [
                *explain(
                    self._plan, self.skipped, self._reference.described,
                    measurement.comparisons.chance,
                    unreadable=not_readable(self._plan.matrices),
                    unwatched=self._plan.changes.unwatched(), full=full,
                ),
                *self._plan.notes,
                *memory.lines(full=full),
                measurement.device.described,
                *measurement.comparisons.changes.described,
                *recorded_lines(self._plan, measurement, self._sinks, memory.disk_per_step),
                *forecast_lines(self._plan, measurement, self._cadence, SpectralMonitor),
                self._cadence.described,
            ]
        )  # fmt: skip

    def memory(self) -> MemoryPlan:
        """What the monitor keeps between steps, in bytes, and what a step adds to the disk.

        Example:
            >>> monitor = sk.SpectralMonitor(torch.nn.Linear(64, 64), every=1)
            >>> monitor.memory().total > 0
            True
        """
        matrices = self._plan.matrices
        sides = [(matrix.shape, matrix.rank) for matrix in matrices]
        return MemoryPlan.of(
            matrices,
            self._plan.parts,
            self._measurement.memory(),
            per_step=bytes_per_step(sides, self._measurement.vectors, self._saved_vectors),
        )

    def step(self, step: int | None = None, **scalars: float | Tensor) -> SpectralFrame | None:
        """Measure if this step is due; call it after ``optimizer.step()``.

        A matrix that cannot be read now (its parameter is gone, sharded, freed or of another shape)
        has a row of NaN with the reason, and a warning the first time; it is measured again as
        soon as it can be, and all others are at every step.

        Args:
            step: number of the training step; counted from 0 where it is not given.
            scalars: numbers to keep with the frame, such as ``loss=loss``; tensors of one
                element are read only when the step is due.

        Returns:
            The frame, or ``None`` where the step is not due, the monitor is paused, or the call
            is part of a CUDA graph that you capture (with a warning). On a GPU the
            frame is mostly there before its numbers: looking at them waits for the device, and
            recorders get it at a later step, at `close` or at `state_dict`, see
            `SpectralFrame.arrived`. `explain` tells whether that is so.

        Raises:
            ValueError: a scalar of more than one element or with a name of the monitor's own
                ("every", "overhead", "not_finite", "reasons").

        Example:
            >>> monitor = sk.SpectralMonitor(torch.nn.Linear(4, 3), every=1)
            >>> monitor.step(0, loss=0.5).scalars
            {'loss': 0.5}
        """
        if is_being_captured():
            warnings.warn(CAPTURED, stacklevel=2)
            return None
        number = self._next_step if step is None else int(step)
        self._next_step = number + 1
        if self._began_at is None:
            self._began_at = number
            self._check_start(number)
        if self._paused:
            self._pace.interrupt()
            return None
        self._pace.enter(number)
        if not self._cadence.is_due(number):
            self._delivery.deliver()
            self._pace.leave(number)
            return None
        self._plan.changes.warn_of_news(stacklevel=2)
        self._frame, late = self._measurement.take(number, scalars, self.every)
        self._pace.measured(self._frame, late)
        self._delivery.take(self._frame)
        self._pace.delivered(number, late)
        return self._frame

    def _check_start(self, number: int) -> None:
        """Say where a run goes on without the state of its monitor: its start is not known here."""
        if self._frame is not None or not self._reference.wants_init or self._is_resumed:
            return
        recorded = [s.last_step for s in self._sinks if isinstance(s, Recorder)]
        # Some call it at the steps alone that are due.
        first = (0, 1, self._cadence.every) if self._cadence.overhead is None else (0, 1)
        if number in first and all(last is None for last in recorded):
            return
        self._reference.made_late(number)
        warnings.warn(
            f"reference='init' is the weights when this monitor was made, and its first step is "
            f"{number}: agreement is with those, not with the initial ones. A run that goes on "
            "loads the monitor's state (load_state_dict), which has its reference",
            stacklevel=3,
        )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, ``step`` counts steps but measures nothing.

        Example:
            >>> monitor = sk.SpectralMonitor(torch.nn.Linear(4, 3), every=1)
            >>> with monitor.paused():
            ...     monitor.step() is None
            True
        """
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def close(self) -> None:
        """Record what is on its way, and close the recorder.

        The monitor can still be stepped; nothing is recorded then.
        """
        self._delivery.close()

    def _beside_state(self) -> dict[str, Any]:
        if self._delivery.is_recording or self._reference.wants_final:
            raise TypeError(
                "a SpectralMonitor with a recorder cannot be copied or pickled, since two would "
                "write to one place; expected state_dict(), loaded into a monitor made anew, or a "
                "copy of this one after close()"
            )
        return {"_frame": self._frame}

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs: step counter, reference vectors, warm starts.

        Only tensors and plain values: ``torch.load(..., weights_only=True)`` reads it. Frames of
        all steps so far are recorded when it returns.
        """
        self._measurement.device.wait()
        self._delivery.deliver(wait=True)
        return {
            "version": STATE_VERSION,
            "method": self.method,
            "next_step": self._next_step,
            "cadence": self._cadence.state(),
            **matrices_state(self._plan.matrices),
            **self._measurement.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of a monitor with the same method and matrices.

        Args:
            state: of the other monitor, maybe from ``torch.load``.

        Raises:
            ValueError: the method, the names or the shapes differ; the message tells which.

        Example:
            >>> model = torch.nn.Linear(4, 3)
            >>> before = sk.SpectralMonitor(model, every=1)
            >>> after = sk.SpectralMonitor(model, every=1)
            >>> frame = before.step()
            >>> after.load_state_dict(before.state_dict())
            >>> after.step().step
            1
        """
        check_state(state, self.method, self._plan.matrices)
        self._measurement.load_state(state)
        self._is_resumed = True
        self._next_step = int(state["next_step"])
        self._cadence.load_state(state["cadence"])
