"""Leading updates of tensors with any batch dimensions on a device that is not waited for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from spectral_kernels.entry.results import SVD
from spectral_kernels.runtime import dispatch
from spectral_kernels.runtime.memory import Memory, flattened, is_view
from spectral_kernels.tracking.leading.state import WORK, Block, LeadingResult
from spectral_kernels.tracking.state import LateWork


class LatePlan:
    """Prepared updates of tensors, and where their results stay.

    Args:
        tensors: (..., m, n), of which `takes` is true.
        blocks: their states, which live on the device from now on.
        ks: how many triplets of each.
        tolerance: as for ``SpectrumTracker``.
        schedule: how many updates there were, and how many one set of fresh columns serves.
    """

    def __init__(
        self,
        tensors: list[Tensor],
        blocks: list[Block],
        ks: list[int],
        tolerance: float,
        schedule: tuple[int, int],
    ) -> None:
        self._filled = [i for i, A in enumerate(tensors) if A.numel()]
        self._memory = Memory(tensors)
        self.counts = [A.shape[:-2].numel() if A.numel() else 0 for A in tensors]
        backend = dispatch.backend("tracking.leading", tensors[0].device.type)
        self._updates = backend.prepare(
            self._flat(tensors),
            [blocks[i] for i in self._filled],
            [ks[i] for i in self._filled],
            tolerance,
            *schedule,
        )

    @staticmethod
    def takes(tensors: list[Tensor], widths: list[int]) -> bool:
        """Whether the backend of these has updates that do not wait, and for all of them."""
        backend = dispatch.backend("tracking.leading", tensors[0].device.type)
        some = any(A.numel() for A in tensors)
        return (
            some
            and hasattr(backend, "prepare")
            and all(backend.supported(A, width) for A, width in zip(tensors, widths, strict=True))
        )

    def _flat(self, tensors: list[Tensor]) -> list[Tensor]:
        return [flattened(tensors[i]) for i in self._filled]

    def fits(self, tensors: list[Tensor]) -> bool:
        """Whether these take the place of those before them; read from now on if so."""
        if not self._memory.is_like(tensors):
            return False
        flat = self._flat(tensors)
        # A batch that cannot be flattened in place was copied, and is to be read anew.
        in_place = all(is_view(A, tensors[i]) for i, A in zip(self._filled, flat, strict=True))
        if not in_place or not self._memory.is_of(tensors):
            self._memory = Memory(tensors)
            self._updates.rebind(flat)
        return True

    @property
    def lost(self) -> Tensor:
        """(sum of counts,) bool: the matrices that were not followed."""
        lost: Tensor = self._updates.lost
        return lost

    def updates(self) -> int:
        """Return how many updates there were, replayed ones too; waits for the device."""
        return int(self._updates.updates)

    def run(self) -> list[LeadingResult | None]:
        """Update; results (B, ...) of each tensor, None for one without entries."""
        found: list[LeadingResult | None] = [None] * len(self.counts)
        for i, result in zip(self._filled, self._updates.run(), strict=True):
            found[i] = result
        return found

    def resolve(self, which: Sequence[Sequence[int]]) -> None:
        """Start blocks anew for the next run, an entry of indices for each tensor."""
        self._updates.resolve([which[i] for i in self._filled])

    def take_back(self, blocks: list[Block]) -> int:
        """Make blocks ones of the host again and return how many updates there were."""
        for i in self._filled:
            block = blocks[i]
            block.warm[:] = block.started()
            block.vectors = block.vectors.clone()
            block.identities = block.identities.to("cpu", copy=True)
        return self.updates()


def copied(result: LeadingResult) -> LeadingResult:
    """Return a result that the next update leaves alone."""
    svd, bounds, norms, residuals, sizes, identities, work = result
    if isinstance(work, LateWork):
        work = LateWork(work.codes.clone(), work.lost.clone(), WORK)
    return LeadingResult(
        SVD(*(x.clone() for x in svd)),
        bounds.clone(), norms.clone(), residuals.clone(), sizes.clone(), identities.clone(), work,
    )  # fmt: skip
