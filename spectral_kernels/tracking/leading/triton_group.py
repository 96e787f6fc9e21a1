"""Batches of one shape and layout whose matrices share the launches of a leading update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_kernels.entry.results import SVD
from spectral_kernels.rsvd.triton_backend import BAD_BITS
from spectral_kernels.rsvd.triton_launch import Batch
from spectral_kernels.tracking.leading.state import UNSETTLED, WORK, Block
from spectral_kernels.tracking.leading.triton_iteration import Iteration, improve, iterate, scale
from spectral_kernels.tracking.leading.triton_launch import refresh
from spectral_kernels.tracking.results import SOLVED, Tracked, Work

# Iterations of a block that is started anew, before the one of the update.
_ITERATIONS_ANEW = 8
_LEAST = torch.finfo(torch.float32).smallest_normal * torch.finfo(torch.float32).eps
_UNIT = torch.finfo(torch.float32).eps / 2


class _Outputs(NamedTuple):
    """Results of the matrices of a group, one after the other."""

    Ut: Tensor
    S: Tensor
    Vh: Tensor
    bounds: Tensor
    error_norms: Tensor
    residuals: Tensor
    frobenius_norms: Tensor
    identities: Tensor
    codes: Tensor


class Group:
    """Batches of one shape and layout, whose matrices share launches."""

    def __init__(
        self,
        blocks: list[Block],
        members: list[int],
        k: int,
        tolerance: float,
        every: int,
        device: torch.device,
    ) -> None:
        self._members, self._k = members, k
        self._tolerance, self._every = tolerance, every
        # A state loaded from a file may be elsewhere, and of float64 matrices.
        self._V = torch.cat([block.vectors.to(device, torch.float32) for block in blocks])
        self._numbers = torch.cat([block.identities.to(device) for block in blocks])
        self._cold = [not warm for block in blocks for warm in block.started()]
        self._counts = [len(block.warm) for block in blocks]
        # Blocks look into the memory of the group, where the state lives.
        for block, V, numbers in zip(
            blocks, *(torch.split(x, self._counts) for x in (self._V, self._numbers)), strict=True
        ):
            block.vectors, block.identities, block.late = V, numbers, True
        self._start = self._V.clone()
        self._anew = torch.zeros(len(self._V), dtype=torch.bool, device=device)

    def bind(self, matrices: list[Tensor]) -> None:
        """Read from these from now on: all batches, of which some are this group's."""
        self._matrices = [matrices[i] for i in self._members]
        self._batch = Batch.of(self._matrices, self._members)
        m, n = self._batch.first.shape[-2:]
        self._short_side = min(m, n)

    def allocate(self, flags: Sequence[Tensor]) -> list[tuple[int, Tracked]]:
        """Make room for results; ``flags`` (B,) bool of each batch say which matrices are lost."""
        m, n = self._batch.first.shape[-2:]
        count, k = len(self._batch), self._k
        like = self._V

        def room(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.empty(count, *shape, dtype=dtype, device=like.device)

        single = torch.float32
        self._out = _Outputs(
            room(k, m, dtype=single), room(k, dtype=single), room(k, n, dtype=single),
            room(k), room(), room(k), room(),
            room(k, dtype=torch.int64), room(dtype=torch.int64),
        )  # fmt: skip
        self._lost = [flags[i] for i in self._members]
        results = []
        parts = (torch.split(x, self._counts) for x in self._out)
        for i, lost, own in zip(self._members, self._lost, zip(*parts, strict=True), strict=True):
            Ut, S, Vh, bounds, norms, residuals, sizes, identities, codes = own
            work = Work(codes, lost, WORK)
            svd = SVD(Ut.mT, S, Vh)
            results.append((i, Tracked(svd, bounds, norms, identities, work, residuals, sizes)))
        return results

    def start_cold(self) -> None:
        """Find a first block for the matrices that have none."""
        self._improve([i for i, cold in enumerate(self._cold) if cold])

    def start_anew(self, which: Sequence[Sequence[int]]) -> None:
        """Have the next run start from new blocks, indices for each batch; does not wait."""
        at, chosen = 0, []
        for member, count in zip(self._members, self._counts, strict=True):
            chosen += [at + i for i in which[member]]
            at += count
        self._improve(chosen)

    def _improve(self, chosen: list[int]) -> None:
        """Start these blocks from random columns, iterated by themselves."""
        if not chosen:
            return
        flat = [A[i] for A in self._matrices for i in range(len(A))]
        batch = Batch.of([flat[i] for i in chosen], chosen)
        # Columns of zeros become random ones where a block is orthonormalised.
        X = torch.zeros_like(self._V[: len(chosen)])
        X = improve(batch, X, _ITERATIONS_ANEW)
        for place, i in enumerate(chosen):
            self._start[i].copy_(X[place])
            self._anew[i].fill_(True)

    def run(self, updates: Tensor) -> None:
        """Update; ``updates`` (1,) int64 is how many there were."""
        width, k = self._V.shape[-1], self._k
        # Where the block is everything there is nothing to look for.
        fresh = (width - k) // 2 if width < self._short_side else 0
        X = refresh(self._start, updates, width - fresh, self._every)
        iteration = iterate(self._batch, X, k)
        good = iteration.largest < BAD_BITS
        live = good & (iteration.s[:, 0] > 0)
        signs = self._recognise(iteration, live)
        self._write(iteration, signs, good)
        top = iteration.s[:, 0]
        # sigma_1 >= ||A||_F / sqrt(r), whatever A is.
        least = iteration.frobenius * scale(iteration.largest) / self._short_side**0.5
        strayed = (top < 0.5 * least) | (iteration.gain > UNSETTLED * self._tolerance * top)
        lost = strayed & live & ~self._anew
        for flags, own in zip(self._lost, torch.split(lost, self._counts), strict=True):
            flags.copy_(own)
        self._out.codes.copy_(torch.where(good, torch.where(self._anew, SOLVED, 1), -1))
        where_live = live[:, None, None]
        self._V.copy_(torch.where(where_live, iteration.V * signs[:, None, :], self._V))
        # A matrix that was not finite, or zero, goes on from where it was.
        self._start.copy_(torch.where(where_live, self._V, self._start))
        self._anew &= ~live

    def _recognise(self, iteration: Iteration, live: Tensor) -> Tensor:
        """Give every column its number; return signs (B, l) that turn it towards the old one."""
        numbers = self._numbers
        overlap = self._V.double().mT @ iteration.V.double()
        best, nearest = overlap.abs().max(dim=1)
        same = best.square() > 0.5
        first = numbers[:, -1:] == 0
        new = numbers[:, -1:] + (~same).cumsum(dim=1) - 1
        given = torch.where(same, numbers.gather(1, nearest), new)
        following = numbers[:, -1:] + (~same).sum(dim=1, keepdim=True)
        kept = torch.where(live[:, None], torch.cat((given, following), dim=1), numbers)
        numbers.copy_(kept)
        turned = overlap.gather(1, nearest[:, None])[:, 0]
        pivot = iteration.Ut.gather(2, iteration.Ut.abs().argmax(dim=2, keepdim=True))[..., 0]
        upright = torch.nn.functional.pad(pivot, (0, turned.shape[1] - self._k))
        value = torch.where(first, upright.double(), turned)
        return torch.where(value < 0, -1.0, 1.0).to(torch.float32)

    def _write(self, iteration: Iteration, signs: Tensor, good: Tensor) -> None:
        k, out = self._k, self._out
        unscale = (1.0 / scale(iteration.largest))[:, None]
        s = iteration.s[:, :k]
        bounds, norms, residuals = iteration.certificate
        size = iteration.frobenius[:, None] / unscale
        bad = ~good[:, None]

        def put(place: Tensor, x: Tensor) -> None:
            mask = bad.reshape(-1, *(1,) * (x.dim() - 1))
            place.copy_(torch.where(mask, torch.nan, x))

        put(out.Ut, iteration.Ut * signs[:, :k, None])
        put(out.Vh, (iteration.V[..., :k] * signs[:, None, :k]).mT)
        put(out.S, s * unscale)
        # Narrowing, and the smallest number: what it costs where results are denormal.
        put(out.bounds, (bounds + _UNIT * s) * unscale + _LEAST)
        put(out.residuals, (residuals + 3.0 * _UNIT * size) * unscale + _LEAST)
        norm = norms + _UNIT * torch.linalg.vector_norm(s, dim=1)
        put(out.error_norms, norm * unscale[:, 0] + _LEAST * k**0.5)
        put(out.frobenius_norms, iteration.frobenius)
        numbers = self._numbers[:, :k]
        plain = torch.arange(k, device=numbers.device).expand_as(numbers)
        # A zero matrix before the first vectors has none to be told apart.
        reported = torch.where(self._numbers[:, -1:] == 0, plain, numbers)
        out.identities.copy_(torch.where(bad, -1, reported))
