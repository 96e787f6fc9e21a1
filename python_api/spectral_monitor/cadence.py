"""At which steps a monitor measures: every n-th, or as often as a share of the time allows.

A measurement costs c seconds, a training step t. Measuring every n steps takes the share
c / (n t + c) of the time, which is at most o from n = c (1 - o) / (o t) on. Both are running means
of what was measured, by the clock of the host or, on a GPU, by that of the device. The cadence
follows them slowly, since a run whose cadence jitters is hard to plot: not before it is off by a
quarter, and by a factor of two at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

OVERHEAD = 0.05
"""The share of the time that a monitor may take where nothing else is asked for."""

# Weight of the newest observation. Measurements are rarer than training steps.
_NEW_COST, _NEW_TRAINING = 0.1, 0.05
# A pause of the training (a validation, a checkpoint) counts as a few steps at most.
_LARGEST = 4.0
_TOLERATED = 1.25
_TOO_MUCH = 0.2


class Cadence:
    """Decides which training steps are measured.

    Args:
        every: steps that are multiples of this.
        overhead: the share of the time that measurements may take, 0 < overhead < 1; `OVERHEAD`
            where neither is given.

    Raises:
        ValueError: both are given, or one is out of range.
    """

    def __init__(self, every: int | None = None, overhead: float | None = None) -> None:
        if every is not None and overhead is not None:
            raise ValueError(
                f"every and overhead: expected one of them, got every={every!r} and "
                f"overhead={overhead!r}"
            )
        if every is not None and (isinstance(every, bool) or every != int(every) or every < 1):
            raise ValueError(f"every: expected a whole number of at least 1, got {every!r}")
        if overhead is not None and not 0 < overhead < 1:
            raise ValueError(f"overhead: expected a share between 0 and 1, got {overhead!r}")
        self.every = every or 1
        self.overhead = OVERHEAD if every is None and overhead is None else overhead
        self._cost = math.nan
        self._training = math.nan
        self._measured = 0
        self._last: int | None = None
        self._left: tuple[int, float] | None = None
        self._has_device_clock = False

    def enter(self, number: int, now: float) -> None:
        """The training step before ``number`` is over."""
        if self._left is None or self._has_device_clock:
            return
        steps = number - self._left[0]
        if steps > 0:
            seconds = (now - self._left[1]) / steps
            self._training = _mean(self._training, seconds, _NEW_TRAINING)

    def trained(self, seconds: float) -> None:
        """A training step took so long on its device; from now on the host's clock is not asked."""
        before = self._training if self._has_device_clock else math.nan
        self._training = _mean(before, seconds, _NEW_TRAINING)
        self._has_device_clock = True

    def is_due(self, number: int) -> bool:
        """Whether this step is to be measured."""
        if self.overhead is None:
            return number % self.every == 0
        if self._measured == 1:
            # The first step before which both times were taken.
            self._adapt()
        return self._last is None or not self._last < number < self._last + self.every

    def leave(self, number: int, now: float, cost: float | None = None) -> None:
        """The next training step starts; ``cost``: seconds of the measurement, if there was one."""
        self._left = (number, now)
        if cost is not None:
            self.measured(number)
            self.charge(cost)

    def measured(self, number: int) -> None:
        """This step was measured; its cost comes with `charge`, maybe some steps later."""
        self._last = number

    def charge(self, cost: float) -> None:
        """A measurement took so many seconds; costs come in the order of their steps."""
        # The first measurement decomposes everything anew, the second one is like the rest. Of
        # those, a dear one, such as new solutions after a jump, counts as what it took.
        self._cost = cost if self._measured < 2 else _mean(self._cost, cost, _NEW_COST, math.inf)
        self._measured += 1
        self._adapt()

    def interrupt(self) -> None:
        """The time until the next step is not that of training."""
        self._left = None

    @property
    def described(self) -> str:
        """One line for `explain`."""
        unit = "step" if self.every == 1 else f"{self.every} steps"
        goal = (
            ""
            if self.overhead is None
            else f"chosen to take {self.overhead:.3g} of the time at most"
        )
        if not self.is_timed:
            until = f" until the times are known, then as {goal}" if goal else ""
            return f"measured every {unit}{until}"
        share = self._cost / (self.every * self._training + self._cost)
        times = (
            f"a measurement takes {1e3 * self._cost:.3g} ms, a training step "
            f"{1e3 * self._training:.3g} ms: {share:.2g} of the time"
        )
        if goal:
            return f"measured every {unit}, {goal}: {times}"
        if share <= _TOO_MUCH:
            return f"measured every {unit}; {times}"
        fitting = every_for(self._cost, self._training, OVERHEAD)
        return (
            f"measured every {unit}; {times}; overhead={OVERHEAD:g} in place of every would "
            f"measure every {fitting} steps, and leading triplets alone (k=32) cost less"
        )

    @property
    def is_timed(self) -> bool:
        """Whether both times were measured."""
        return not math.isnan(self._cost + self._training)

    def state(self) -> dict[str, Any]:
        """The cadence so far, for the monitor's ``state_dict``."""
        times = {"cost": self._cost, "training": self._training}
        return {
            "every": self.every,
            "overhead": self.overhead,
            # None for a time not taken yet, since NaN is not equal to itself, or not needed.
            **{
                name: None if self.overhead is None or math.isnan(value) else value
                for name, value in times.items()
            },
            "measured": 0 if self.overhead is None else self._measured,
            "last": self._last,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on with the cadence of a state; one of another kind is left as it was.

        Options of this monitor win: a run may go on with another budget.
        """
        if (state["overhead"] is None) != (self.overhead is None):
            return
        if self.overhead is not None:
            self.every = int(state["every"])
            times = (state["cost"], state["training"])
            self._cost, self._training = (math.nan if x is None else float(x) for x in times)
        self._measured, self._last = int(state["measured"]), state["last"]
        self._left, self._has_device_clock = None, False

    def _adapt(self) -> None:
        if self.overhead is None or math.isnan(self._cost + self._training):
            return
        wanted = every_for(self._cost, self._training, self.overhead)
        if self._measured < 3:
            self.every = wanted
        elif not self.every / _TOLERATED <= wanted <= self.every * _TOLERATED:
            self.every = max(1, min(max(wanted, self.every // 2), 2 * self.every))


def every_for(cost: float, training: float, overhead: float) -> int:
    """Steps from one measurement to the next at which they take this share of the time at most."""
    fitting = cost * (1 - overhead) / (overhead * max(training, 1e-9))
    # Not one more for the last bit of the quotient.
    return max(1, math.ceil(fitting * (1 - 1e-6)))


def _mean(before: float, now: float, weight: float, largest: float = _LARGEST) -> float:
    if math.isnan(before):
        return now
    return before + weight * (min(now, largest * before) - before)
