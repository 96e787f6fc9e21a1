"""An update of a tracker as an entry of a program."""

from __future__ import annotations

from torch import Tensor

from spectral_kernels.runtime.program.op import Call
from spectral_kernels.tracking.whole.op import WholeTracker


class PreparedUpdate:
    """An update of a tracker, see `SpectrumTracker.prepared`.

    Args:
        tracker: whose matrices lie where they lay; what it returned is overwritten.
        codes: (...,) float64 of each entry of its list, where an update leaves what it did.
    """

    def __init__(self, tracker: WholeTracker, codes: list[Tensor]) -> None:
        self._tracker, self.codes = tracker, codes

    @property
    def calls(self) -> list[Call] | None:
        """What a run asks of the compiled module."""
        return self._tracker.calls

    def run(self) -> None:
        """Update."""
        self._tracker.run()

    def settle(self) -> bool:
        """To be called after a run: whether ``calls`` are others from now on."""
        return self._tracker.settle()
