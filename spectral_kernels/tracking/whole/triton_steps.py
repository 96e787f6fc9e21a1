"""One update of a chunk of matrices as launches: products by torch, the rest by Triton kernels.

    W = X V, S = W^T W                     certificate: who asks to turn
    R = I + E + E^2 / 2 from S             the rotation
    N = V R, Z = 3/2 I - 1/2 N^T N         a Newton-Schulz step
    V = N Z, W = X V, S = W^T W            certificate of what is returned

The first rotation's products run for all matrices, those that do not ask turning by nothing: the
host does not know who asks, and nine in ten do (700 steps of the demo's training, 9 matrices). The
others' run in ``triton_product_kernels``, where a matrix that does not ask costs nothing: four in
five ask again in the first hundred steps, one in 25 later. On a GPU neither is measured.

Operations for M x r: 4 M r^2 where nothing turns with the last vectors, 4 M r^2 + 8 r^3 for each
rotation, in float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectral_kernels.runtime import numerics
from spectral_kernels.runtime.triton import host
from spectral_kernels.tracking.whole import (
    triton_certificate_kernels,
    triton_completion_kernels,
    triton_output_kernels,
    triton_settling_kernels,
    triton_tangent_kernels,
    triton_verdict_kernels,
)
from spectral_kernels.tracking.whole.groups import Group, Workspace
from spectral_kernels.tracking.whole.state import LARGEST_ROW, ROTATIONS
from spectral_kernels.tracking.whole.triton_launches import (
    PASS,
    STRETCH,
    STRIPES,
    TILE,
    WHOLE,
    Product,
    launch,
    multiply,
    multiply_where,
)


class Chunk:
    """One stretch of a group, with the buffers and the launches of its update."""

    def __init__(self, group: Group, here: slice, memory: Tensor, settings: Tensor) -> None:
        self.here, self.r, self.long_side = here, group.r, group.long_side
        self.count: int = here.stop - here.start
        self.settings = settings
        self.space = Workspace(memory, self.count, group.long_side, group.r)
        self.vectors, self.drift = group.vectors[here], group.drift[here]
        self.names, self.fresh = group.names[here], group.fresh[here]
        self.long, self.short = group.long[here], group.short[here]
        self.slots, self.scales = group.slots[here], group.scales[here]
        self.scaled = group.dtype == torch.float64
        wide: Any = {"dtype": torch.float64, "device": group.device}
        flag: Any = {"dtype": torch.int32, "device": group.device}
        self.values, self.shrink = torch.empty(2, self.count, group.r, **wide).unbind()
        self.factors, self.ones = torch.empty(2, self.count, group.r, **wide).unbind()
        self.sums = torch.empty(self.count, 6, group.r, **wide)
        self.proved = torch.empty(self.count, 8, **wide)
        self.new_drift = torch.empty(self.count, **wide)
        self.asked, self.turns, self.turned = torch.empty(3, self.count, **flag).unbind()
        self.incomplete, self.doubtful, self.doubt = torch.empty(3, self.count, **flag).unbind()

    def normalise(self) -> None:
        """Scale X so that no square under- or overflows, which float64 input alone may make do."""
        if not self.scaled:
            return
        X = self.space.X
        largest = torch.linalg.vector_norm(X, float("inf"), dim=(-2, -1))
        exponent = torch.frexp(torch.where(torch.isfinite(largest), largest, 1.0)).exponent
        half = exponent // 2
        halves = (half, exponent - half)
        for i, part in enumerate(halves):
            X.mul_(numerics.power_of_two(-part, torch.float64)[:, None, None])
            self.scales[:, i] = numerics.power_of_two(part, torch.float64)

    def update(self, out: Any) -> None:
        """Bring the vectors up to date with X, and write S, bounds and the rest to ``out``."""
        space = self.space
        torch.bmm(space.X, self.vectors, out=space.W)
        torch.bmm(space.W.mT, space.W, out=space.S)
        self.new_drift.copy_(self.drift)
        self._certify(first=True)
        current = self.vectors
        for rotation in range(ROTATIONS):
            everywhere = rotation == 0
            self._rotate(current, multiply if everywhere else self._where_asked, everywhere)
            self._certify(first=False)
            current = space.V
        self._write(out)

    def _rotate(self, V: Tensor, product: Product, everywhere: bool) -> None:
        """Turn V to ``space.V``, with W and S of it."""
        space = self.space
        launch(
            triton_tangent_kernels.rotation, self._tiles(self.r, self.r), TILE,
            asked_ptr=self.asked, gram_ptr=space.S, values_ptr=self.values,
            shrink_ptr=self.shrink, skew_ptr=space.E, first_order_ptr=space.R,
            r=self.r, long=self.long_side, SKIP=not everywhere,
        )  # fmt: skip
        product(space.E, space.E, space.R, 0.5, True)
        product(V, space.R, space.N, 1.0, False)
        product(space.N.mT, space.N, space.S, 1.0, False)
        self._orthonormalise(everywhere)
        product(space.N, space.S, space.V, 1.0, False)
        product(space.X, space.V, space.W, 1.0, False)
        product(space.W.mT, space.W, space.S, 1.0, False)

    def _orthonormalise(self, everywhere: bool) -> None:
        """Z in place of N^T N, and its departure from I."""
        launch(
            triton_tangent_kernels.orthonormalizer, self._stripes(), STRIPES,
            asked_ptr=self.asked, gram_ptr=self.space.S, departures_ptr=self.sums[:, 4],
            departure_squares_ptr=self.sums[:, 5], r=self.r, stride_sums=6 * self.r,
            SKIP=not everywhere,
        )  # fmt: skip

    def _certify(self, *, first: bool) -> None:
        """The norms of W's columns, what they are worth, and who asks to turn."""
        kernels = triton_certificate_kernels
        launch(
            kernels.lengths, self.count, WHOLE,
            asked_ptr=self.asked, gram_ptr=self.space.S, values_ptr=self.values,
            proved_ptr=self.proved, r=self.r, FIRST=first,
        )  # fmt: skip
        launch(
            kernels.row_sums, self._stripes(), STRIPES,
            asked_ptr=self.asked, gram_ptr=self.space.S, values_ptr=self.values,
            proved_ptr=self.proved, sums_ptr=self.sums, r=self.r, long=self.long_side, FIRST=first,
        )  # fmt: skip
        launch(
            triton_verdict_kernels.verdict, self.count, WHOLE,
            sums_ptr=self.sums, values_ptr=self.values, settings_ptr=self.settings,
            drift_ptr=self.new_drift, asked_ptr=self.asked, turns_ptr=self.turns,
            proved_ptr=self.proved, shrink_ptr=self.shrink, r=self.r, long=self.long_side,
            FIRST=first, LARGEST_ROW=LARGEST_ROW,
        )  # fmt: skip

    def _write(self, out: Any) -> None:
        kernels, space = triton_output_kernels, self.space
        _, order = self.values.sort(dim=-1, descending=True, stable=True)
        launch(
            kernels.outcome, self.count, WHOLE,
            values_ptr=self.values, order_ptr=order, proved_ptr=self.proved,
            settings_ptr=self.settings, scales_ptr=self.scales, slots_ptr=self.slots,
            asked_ptr=self.asked, turns_ptr=self.turns, drift_ptr=self.new_drift,
            long_ptr=self.long, names_ptr=self.names, state_drift_ptr=self.drift,
            fresh_ptr=self.fresh, out_s_ptr=out.S[self.long.dtype], bounds_ptr=out.bounds,
            identities_ptr=out.identities, codes_ptr=out.codes, lost_ptr=out.lost.view(torch.uint8),
            norms_ptr=out.error_norms, factors_ptr=self.factors, ones_ptr=self.ones,
            incomplete_ptr=self.incomplete, doubtful_ptr=self.doubtful, turned_ptr=self.turned,
            r=self.r, long=self.long_side,
        )  # fmt: skip
        for columns, factors, rows in (
            (space.V, self.ones, self.short), (space.W, self.factors, self.long),
        ):  # fmt: skip
            side = columns.shape[1]
            launch(
                kernels.vectors, self._tiles(self.r, side), TILE,
                columns_ptr=columns, order_ptr=order, factors_ptr=factors, out_ptr=rows,
                rows=side, r=self.r,
            )  # fmt: skip
        size = self.r * self.r
        launch(
            kernels.keep, self.count * host.cdiv(size, STRETCH["BLOCK"]), STRETCH,
            turned_ptr=self.turned, new_ptr=space.V, old_ptr=self.vectors, count=size,
        )  # fmt: skip
        self._look()
        self._complete()
        self._settle()

    def _look(self) -> None:
        """How far the rows of the long side are orthonormal as they are, where that is in doubt."""
        multiply_where(self.doubtful, self.long, self.long.mT, self.space.E)
        launch(
            triton_settling_kernels.first_doubt, self.count, STRIPES,
            doubtful_ptr=self.doubtful, incomplete_ptr=self.incomplete,
            factors_ptr=self.factors, gram_ptr=self.space.E, doubt_ptr=self.doubt, r=self.r,
        )  # fmt: skip

    def _settle(self) -> None:
        """Make them so from there on. W is no longer needed, nor are the scales of rotations."""
        launch(
            triton_settling_kernels.settle, self.count, PASS,
            doubt_ptr=self.doubt, q_ptr=self.long, x_ptr=self.space.rows,
            products_ptr=self.shrink, r=self.r, long=self.long_side,
        )  # fmt: skip

    def _complete(self) -> None:
        """Give zero values vectors orthogonal to the others, as far as there are such values."""
        kernels, space = triton_completion_kernels, self.space
        launch(
            kernels.coefficients, self._tiles(self.r, self.r), TILE,
            incomplete_ptr=self.incomplete, factors_ptr=self.factors, gram_ptr=space.E, r=self.r,
        )  # fmt: skip
        multiply_where(self.incomplete, space.E, self.long, space.rows)
        launch(
            kernels.write_back, self.count * self.r, STRETCH,
            incomplete_ptr=self.incomplete, factors_ptr=self.factors, new_ptr=space.rows,
            out_ptr=self.long, r=self.r, long=self.long_side,
        )  # fmt: skip

    def _where_asked(self, a: Tensor, b: Tensor, out: Tensor, alpha: float, add: bool) -> None:
        multiply_where(self.asked, a, b, out, alpha, add)

    def _tiles(self, rows: int, columns: int) -> int:
        side: int = TILE["SIDE"]
        return self.count * host.cdiv(rows, side) * host.cdiv(columns, side)

    def _stripes(self) -> int:
        return self.count * host.cdiv(self.r, STRIPES["ROWS"])
