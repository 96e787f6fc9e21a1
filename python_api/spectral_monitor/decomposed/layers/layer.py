"""What every layer whose weight is a trained product U Sigma Vh has in common.

Decomposed Learning ("Decomposed Learning and Grokking", anonymous, under review, section 3): a
weight A is initialised as usual, decomposed, A = U Sigma Vh (eq. 1), cut to k triplets (eq. 3),
and all three factors train, with nothing that keeps U and Vh orthonormal or Sigma diagonal. The
trained factors can be put together again (eq. 4).
"""

from __future__ import annotations

from typing import Any, ClassVar, Self, TypeVar

import torch
from spectral_monitor.decomposed.layers.plain import check_no_parametrizations
from spectral_monitor.decomposed.layers.ranks import Rank, resolve_rank
from torch import Tensor, nn
from torch.nn.utils import skip_init

from spectral_kernels.entry.results import Decomposed
from spectral_kernels.factored.op import decompose, recompose
from spectral_kernels.runtime.numerics import autocast_off

L = TypeVar("L", bound=nn.Module)


class DecomposedLayer(nn.Module):
    """Base of the layers whose weight is U Sigma Vh; not a layer by itself.

    Attributes:
        U: (m, k), or (groups, m, k) where a convolution has groups.
        Sigma: (k, k) or (groups, k, k), dense; diagonal at first.
        Vh: (k, n) or (groups, k, n).
        dense_type: the type of the layer with a weight that it stands for.

    Example:
        >>> layer = sk.DecomposedLinear(6, 4, rank=2)
        >>> isinstance(layer, sk.DecomposedLayer), layer.rank, layer.shape
        (True, 2, (4, 6))
        >>> layer.set_factors(*sk.decompose(layer.weight, 1))
        >>> layer.factors().Sigma.shape
        torch.Size([1, 1])
        >>> type(layer.to_dense()).__name__, type(layer.smallest()).__name__
        ('Linear', 'Sequential')
    """

    dense_type: ClassVar[type[nn.Module]]
    U: nn.Parameter
    Sigma: nn.Parameter
    Vh: nn.Parameter

    @property
    def rank(self) -> int:
        """The number of triplets k."""
        return self.U.shape[-1]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the matrix U Sigma Vh; with groups, of each of them."""
        return self.U.shape[-2], self.Vh.shape[-1]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the dense layer's weight."""
        return self.shape

    @property
    def weight(self) -> Tensor:
        """The recomposed weight in the shape of the dense layer's; differentiable.

        For code that asks a layer for its weight; formed anew each time.
        """
        # It has the precision of a parameter, whatever autocast does with products.
        with autocast_off(self.U.device.type):
            matrix = recompose(*self.factors())
        assert isinstance(matrix, Tensor)
        return matrix.to(self.U.dtype).reshape(self.weight_shape)

    def factors(self) -> Decomposed:
        """Return the parameters themselves as ``Decomposed(U, Sigma, Vh)``."""
        return Decomposed(self.U, self.Sigma, self.Vh)

    def set_factors(self, U: Tensor, Sigma: Tensor, Vh: Tensor) -> None:
        """Put new parameters in the place of the three; their rank may be another one.

        Args:
            U: (m, k), with groups (groups, m, k); Sigma and Vh likewise.
            Sigma: (k, k), dense.
            Vh: (k, n).

        They are copied, in the dtype and on the device of those before, and each trains if the one
        before did. Optimizers that hold the old parameters are to be made anew.

        Raises:
            ValueError: shapes that do not fit the layer or each other; parametrized factors.
        """
        check_no_parametrizations(self, Decomposed._fields)
        batch, (m, n), k = tuple(self.U.shape[:-2]), self.shape, U.shape[-1] if U.dim() else 0
        expected = ((*batch, m, k), (*batch, k, k), (*batch, k, n))
        given = tuple(tuple(t.shape) for t in (U, Sigma, Vh))
        if given != expected or k < 1:
            before = ", ".join(f"{size}" for size in batch)
            head = f"({before}, " if batch else "("
            raise ValueError(
                f"U is {given[0]}, Sigma {given[1]}, Vh {given[2]}; expected "
                f"{head}{m}, k), {head}k, k), {head}k, {n}) with k >= 1"
            )
        self._set_parameters(U, Sigma, Vh, like=self.factors())

    def to_dense(self) -> nn.Module:
        """Return the dense layer with the weight U Sigma Vh (eq. 4), detached."""
        raise NotImplementedError(f"{type(self).__name__} has no dense layer")

    def smallest(self) -> nn.Module:
        """Return what computes the same with the fewest parameters, detached.

        The dense layer, or two thin ones, of Vh and of U Sigma, where k (m + n) < m n.
        """
        m, n = self.shape
        return self._thin() if self.rank * (m + n) < m * n else self.to_dense()

    def extra_repr(self) -> str:
        """Return the sizes of the dense layer and the rank."""
        return f"rank={self.rank}"

    def _thin(self) -> nn.Module:
        raise NotImplementedError(f"{type(self).__name__} has no form of two layers")

    def _left(self) -> Tensor:
        """Return U Sigma, the weight of the second of two thin layers."""
        with autocast_off(self.U.device.type):
            return self.U @ self.Sigma

    def _decompose(self, matrix: Tensor, rank: Rank, like: Tensor) -> None:
        """Take the factors of ``matrix``, (m, n) or (groups, m, n), to train as ``like`` does."""
        k = resolve_rank(rank, matrix.shape[-2], matrix.shape[-1])
        factors = decompose(matrix.detach(), k, check_finite=True)
        assert isinstance(factors, Decomposed)
        self._set_parameters(*factors, like=Decomposed(like, like, like))

    def _set_parameters(self, U: Tensor, Sigma: Tensor, Vh: Tensor, like: Decomposed) -> None:
        for name, factor, before in zip(like._fields, (U, Sigma, Vh), like, strict=True):
            # Contiguous: a gradient with other strides than its parameter is copied each step.
            copy = torch.empty(factor.shape, dtype=before.dtype, device=before.device)
            copy.copy_(factor.detach())
            self.register_parameter(name, nn.Parameter(copy, requires_grad=before.requires_grad))

    def _set_bias(self, bias: Tensor | None) -> None:
        copy = None
        if bias is not None:
            copy = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        self.register_parameter("bias", copy)

    def _fill(self, layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
        """Copy into a plain layer what it is to have; its weight trains if any factor does."""
        with torch.no_grad():
            layer.get_parameter("weight").copy_(weight)
            if bias is not None:
                layer.get_parameter("bias").copy_(bias).requires_grad_(bias.requires_grad)
        layer.get_parameter("weight").requires_grad_(any(f.requires_grad for f in self.factors()))
        layer.train(self.training)

    @classmethod
    def _made(cls, layer: nn.Module, rank: Rank) -> Self:
        """Return the decomposition of a dense layer, in its mode; no random numbers are drawn."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._take(layer, rank)
        return made.train(layer.training)

    def _take(self, layer: Any, rank: Rank) -> None:
        """Take over what a dense layer is, with factors in the place of its weight."""
        raise NotImplementedError(f"{type(self).__name__} has no dense layer")


def uninitialised(kind: type[L], *sizes: int, like: Tensor, **options: Any) -> L:
    """Return a dense layer with the dtype and device of ``like`` that drew no random numbers."""
    make: Any = skip_init
    made: L = make(kind, *sizes, device=like.device, dtype=like.dtype, **options)
    return made
