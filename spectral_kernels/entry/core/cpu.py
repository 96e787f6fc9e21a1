"""Adapter to the compiled kernel: one call for the cores of a ragged list of matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels import _C
from spectral_kernels.entry.core import torch_backend
from spectral_kernels.entry.core.op import Core, core_dtype
from spectral_kernels.entry.results import Decomposed
from spectral_kernels.runtime.memory import matrix_argument


def cores(factors: list[Decomposed], vectors: list[bool]) -> list[Core]:
    """Return the core of each U (..., m, k), Sigma (..., k, k), Vh (..., k, n).

    The kernel tells which factors are too dependent for it: those, float64 factors and empty ones
    are for ``torch_backend``.
    """
    taken = [i for i, x in enumerate(factors) if _is_taken(x)]
    counts = [factors[i].U.shape[:-2].numel() for i in taken]
    errors = torch.empty(sum(counts), dtype=torch.float64)
    results: dict[int, Core] = {}
    jobs = []
    owners: list[tuple[Tensor, ...]] = []
    for i, error in zip(taken, torch.split(errors, counts), strict=True):
        x = factors[i]
        core = results[i] = _allocated(x, error, vectors[i])
        arguments, memory = zip(*(matrix_argument(part) for part in x), strict=True)
        owners.append(memory)
        places = (part.data_ptr() if part.numel() else 0 for part in _written(core))
        jobs.append((*(number for argument in arguments for number in argument), *places))
    if jobs:
        _C.cores(jobs, torch.get_num_threads())
    if bool((errors < 0.0).any()):
        for i in taken:
            _mend(results[i], factors[i], vectors[i])
    others = [i for i in range(len(factors)) if i not in results]
    rest = torch_backend.cores([factors[i] for i in others], [vectors[i] for i in others])
    results.update(zip(others, rest, strict=True))
    return [results[i] for i in range(len(factors))]


def _is_taken(x: Decomposed) -> bool:
    return core_dtype(x) == torch.float32 and all(part.numel() for part in x)


def _allocated(x: Decomposed, error: Tensor, vectors: bool) -> Core:
    """Return room for the core of x, left vectors by columns."""
    *batch, m, k = x.U.shape
    n = x.Vh.shape[-1]
    p, q = min(m, k), min(k, n)
    matrix = torch.empty(*batch, p, q)
    left = torch.empty(*batch, p if vectors else 0, m)
    right = torch.empty(*batch, q if vectors else 0, n)
    return Core(matrix, error.view(batch), left.mT, right)


def _written(core: Core) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return core.matrix, core.error, core.left.mT, core.right


def _mend(core: Core, x: Decomposed, vectors: bool) -> None:
    """Put what torch finds in place of the cores that the kernel gave up."""
    lost = core.error < 0.0
    if not bool(lost.any()):
        return
    part = Decomposed(*(factor[lost] for factor in x))
    (better,) = torch_backend.cores([part], [vectors])
    for field, values in zip(core, better, strict=True):
        field[lost] = values
