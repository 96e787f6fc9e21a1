"""A matrix inside a model: where it is, what its sides mean, and how to read it now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from spectral_monitor.model.getters import ExplainedGetter
from spectral_monitor.model.layer_shapes import misfit
from torch import Tensor

from spectral_kernels.entry.readable import is_readable, resolved, why_unreadable
from spectral_kernels.entry.results import Decomposed
from spectral_kernels.runtime.numerics import DTYPE_CODES, result_dtype

Kept = Tensor | Decomposed
"""How a matrix is kept: as a parameter, or as the factors of a decomposed layer."""

Form = Literal["", "raw", "effective"]
"""Of a parametrized weight: the parameter behind it, or what the layer computes of it."""


_UNSHARD = (
    "unshard() the modules (FSDP) on every rank where the monitor is made and stepped, or give it "
    "a mapping of names to full tensors"
)


class UnreadableMatrixError(ValueError):
    """A matrix whose values are not to be had now.

    Args:
        name: of the matrix.
        reason: what `spectral_monitor.step.frame.MatrixRow.reason` says.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Block:
    """Rows ``start:stop`` of a matrix that mean something on their own, such as one gate."""

    label: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class MatrixView:
    """One matrix inside a parameter, and how its two sides connect to other layers.

    The matrix maps inputs (columns) to outputs (rows). A part of a layer, such as one group of
    a convolution, carries which channels of the whole layer it reads and writes.

    Example:
        >>> registry = sk.default_registry()
        >>> halves = [sk.MatrixView("linear", lambda t: t[:2], "[top]"),
        ...           sk.MatrixView("linear", lambda t: t[2:], "[bottom]")]
        >>> registry.register(torch.nn.Linear, lambda info: halves)
        >>> monitor = sk.SpectralMonitor(torch.nn.Linear(4, 6), pairs=None, registry=registry)
        >>> [(matrix.name, matrix.shape) for matrix in monitor.matrices]
        [('weight[top]', (2, 4)), ('weight[bottom]', (4, 4))]
    """

    kind: str
    """Family for group averages: linear, embedding, conv, recurrent, attention, parameter."""
    view: Callable[[Tensor], Tensor] | None = None
    """Parameter -> 2-D view; ``None`` where the parameter is the matrix already. Of a decomposed
    layer there is no parameter to view, and the matrix is U Sigma Vh whatever this says."""
    suffix: str = ""
    """Ending of the name, such as ``[group 1]``."""
    taps: int = 1
    """Columns per input channel: the size of a convolution's kernel."""
    centre: int = 0
    """The column, among the taps of a channel, that alignment uses."""
    first_output: int = 0
    outputs: int | None = None
    """Output channels of the whole layer; ``None``: this matrix has them all."""
    first_input: int = 0
    inputs: int | None = None
    """Input channels of the whole layer; ``None``: this matrix has them all."""
    is_table: bool = False
    """Rows are looked up: what flows on lies along the columns, so Vh serves as U."""
    blocks: tuple[Block, ...] = ()
    output_block: str | None = None
    """The block of rows whose part of U stands for the output (an LSTM's gate g)."""
    note: str = ""
    """What was guessed of it, or what it is beside its name, for ``explain``."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix under watch: its name, its shape and how to read it now."""

    name: str
    parameter: str
    shape: tuple[int, int]
    source: MatrixView
    aliases: tuple[str, ...]
    """Other names of the same parameter, where weights are tied."""
    get: Callable[[], Kept | None] = field(repr=False, compare=False)
    inner: int | None = None
    """k of a matrix that is kept as U (m, k), Sigma (k, k), Vh (k, n); ``None`` of others."""
    entry: int | None = None
    """Which of the matrices of factors that have a leading dimension, as with groups."""
    whole: str | None = None
    """Of a part with an SVD of its own (`model.submatrices`), the name of the matrix that it is a
    part of; ``None`` of others."""

    form: Form = ""
    """Of a parametrized weight, whether this is the raw parameter or the effective weight."""
    made_of: tuple[str, ...] = ()
    """The parameters that a parametrized weight is computed of; the raw one alone where it is
    that which is shown."""
    stored: tuple[int, ...] | None = None
    """Shape of what ``source`` views, where it is known."""
    sample: Callable[[], Tensor | None] | None = field(default=None, repr=False, compare=False)
    """Of a computed weight, gives a parameter of its dtype and device without computing it."""

    @property
    def kind(self) -> str:
        """Family of the matrix, see `MatrixView.kind`."""
        return self.source.kind

    @property
    def is_decomposed(self) -> bool:
        """Whether the matrix is kept as three factors."""
        return self.inner is not None

    @property
    def is_computed(self) -> bool:
        """Whether it is no parameter but computed of some, whose gradients are not its own."""
        return self.is_decomposed or self.form == "effective"

    @property
    def core(self) -> tuple[int, int]:
        """Shape of what is solved: the matrix, or the core of its factors
        (`spectral_kernels.entry.core`)."""
        m, n = self.shape
        return self.shape if self.inner is None else (min(m, self.inner), min(self.inner, n))

    @property
    def rank(self) -> int:
        """How many singular values there are; all others of a product of factors are zero."""
        return min(self.core)

    @property
    def dtype(self) -> torch.dtype:
        """The parameter's dtype; float32 where the parameter is gone."""
        one = self._one()
        return torch.float32 if one is None else one.dtype

    @property
    def result_bytes(self) -> int:
        """Bytes of one number of the results."""
        return result_dtype(self.dtype).itemsize

    @property
    def device(self) -> torch.device:
        """The parameter's device; the CPU where the parameter is gone."""
        one = self._one()
        return torch.device("cpu") if one is None else one.device

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix as it is kept; 0 where it is gone."""
        m, n = self.shape
        k = self.inner
        count = m * n if k is None else k * (m + k + n)
        return 0 if self._one() is None else count * self.dtype.itemsize

    def _one(self) -> Tensor | None:
        return _one_of(self.get() if self.sample is None else self.sample())

    def read(self) -> Kept:
        """The matrix as it is now, ``(m, n)``: a view of the live parameter, or the live factors.

        Functions of this library that take a matrix take either.

        Two layouts have no 2-D view, since their columns have no single stride: transposed
        convolutions and kernels in ``channels_last``; torch copies those for the moment.

        Raises:
            UnreadableMatrixError: the parameter is gone, its layer replaced, it has another shape,
                or its values are not in its memory (a DTensor, a shard, freed); it may be readable
                again at a later step.
        """
        kept = self._computed() if self.form == "effective" else self.get()
        if kept is None:
            reason = (
                self.get.why() if isinstance(self.get, ExplainedGetter) else "the parameter is gone"
            )
            raise UnreadableMatrixError(self.name, f"{reason}; make a new SpectralMonitor")
        if isinstance(kept, Decomposed):
            return self._factors(Decomposed(*map(self._readable, kept)))
        kept = self._readable(kept)
        if self.stored is not None and tuple(kept.shape) != self.stored:
            raise UnreadableMatrixError(self.name, _another_shape(kept, self.stored))
        matrix = kept if self.source.view is None else self.source.view(kept)
        if matrix.shape != self.shape:
            raise UnreadableMatrixError(self.name, _another_shape(matrix, self.shape))
        return matrix

    def _readable(self, kept: Tensor) -> Tensor:
        if is_readable(kept) and kept.dtype in DTYPE_CODES:
            return kept
        reason = why_not_now(kept)
        if reason is not None:
            raise UnreadableMatrixError(self.name, reason)
        return resolved(kept, self.name)

    def _computed(self) -> Kept | None:
        if self.sample is not None:
            one = self.sample()
            if one is not None:
                self._readable(one)
        try:
            return self.get()
        # Code of anybody's, for parameters that are not what they were when the monitor was made.
        except Exception as error:
            reason = f"it cannot be computed: {type(error).__name__}: {error}"
            raise UnreadableMatrixError(self.name, reason) from error

    def view(self) -> Tensor:
        """`read` of a matrix that is not decomposed.

        Raises:
            TypeError: it is.
        """
        matrix = self.read()
        if isinstance(matrix, Decomposed):
            raise TypeError(f"{self.name} is kept as factors and has no view")
        return matrix

    def _factors(self, kept: Decomposed) -> Decomposed:
        factors = kept if self.entry is None else Decomposed(*(x[self.entry] for x in kept))
        (m, n), k = self.shape, self.inner
        if (factors.U.shape, factors.Sigma.shape, factors.Vh.shape) != ((m, k), (k, k), (k, n)):
            now = ", ".join(str(tuple(x.shape)) for x in factors)
            raise UnreadableMatrixError(
                self.name,
                f"its factors were ({m}, {k}), ({k}, {k}), ({k}, {n}) when the monitor was made "
                f"and are {now} now; make a new SpectralMonitor",
            )
        return factors


def why_not_now(tensor: Tensor) -> str | None:
    """Why the values of a parameter cannot be read, whatever its shape; else ``None``."""
    problem = why_unreadable(tensor)
    if problem is not None:
        is_shared = any(base.__name__ == "DTensor" for base in type(tensor).__mro__)
        # The remedy for a function, .full_tensor(), is no parameter of the model.
        return f"{problem.what}; {_UNSHARD}" if is_shared else str(problem)
    if tensor.dtype not in DTYPE_CODES:
        prefix = "quantised, " if tensor.is_quantized else ""
        return f"{prefix}dtype {tensor.dtype} is not float16, bfloat16, float32 or float64"
    return None


def _another_shape(tensor: Tensor, before: tuple[int, ...]) -> str:
    """What a parameter is that has not the shape it had when the monitor was made."""
    placeholder = misfit(None, "", tensor)
    if placeholder is not None:
        return placeholder
    change = f"its shape was {before} when the monitor was made and is {tuple(tensor.shape)} now"
    if tensor.numel() == 0 or (tensor.dim() == 1 and len(before) > 1):
        return (
            f"{change}: a shard, or a placeholder for values that are partitioned or offloaded; "
            "gather them (FSDP.summon_full_params) where the monitor is stepped"
        )
    return f"{change}; make a new SpectralMonitor"


def joined(*notes: str) -> str:
    """Several notes as one; empty ones are none."""
    return "; ".join(note for note in notes if note)


def tensors_of(kept: Kept | None) -> tuple[Tensor, ...]:
    """The matrix, or its three factors; nothing of what is gone."""
    if kept is None:
        return ()
    return (kept,) if isinstance(kept, Tensor) else (kept.U, kept.Sigma, kept.Vh)


def with_tensors(given: Sequence[Kept], tensors: Iterable[Tensor]) -> list[Kept]:
    """Matrices like the given ones, of these tensors in the order of `tensors_of`."""
    left = iter(tensors)
    return [
        next(left) if isinstance(kept, Tensor) else Decomposed(next(left), next(left), next(left))
        for kept in given
    ]


def shape_of(kept: Kept) -> tuple[int, ...]:
    """(m, n), of factors that of their product."""
    if isinstance(kept, Decomposed):
        return kept.U.shape[-2], kept.Vh.shape[-1]
    return tuple(kept.shape)


def _one_of(kept: Kept | None) -> Tensor | None:
    return kept.U if isinstance(kept, Decomposed) else kept
