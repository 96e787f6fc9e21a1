"""A linear layer whose weight is a trained product U Sigma Vh."""

from __future__ import annotations

from typing import Self

import torch
from spectral_monitor.decomposed.layers.layer import DecomposedLayer, uninitialised
from spectral_monitor.decomposed.layers.plain import check_source
from spectral_monitor.decomposed.layers.ranks import Rank
from torch import Tensor, nn

from spectral_kernels.runtime.numerics import autocast_dtype
from spectral_kernels.runtime.schemas import operator

# The operator behind ``sk.usv_matmul``: its factors were checked when the layer was made.
_usv_matmul = operator("usv_matmul")


class DecomposedLinear(DecomposedLayer):
    """y = x (U Sigma Vh)^T + bias, in place of ``nn.Linear``; all three factors train.

    "Decomposed Learning and Grokking" (anonymous, under review), section 3, eq. 1-4. The
    (out_features, in_features) matrix is formed neither forward nor backward; apart from x and
    the factors, nothing is kept for the backward pass.

    Args:
        in_features: n.
        out_features: m.
        bias: whether a bias is added and trained.
        rank: k, as ``resolve_rank`` reads it; the full rank if None.
        device: where the parameters are; not the meta device.
        dtype: of the parameters: float16, bfloat16, float32 or float64.

    The factors are the SVD of what ``nn.Linear`` would draw, from the same random numbers.

    Example:
        >>> layer = sk.DecomposedLinear(64, 32, rank=8)
        >>> layer.U.shape, layer.Sigma.shape, layer.Vh.shape
        (torch.Size([32, 8]), torch.Size([8, 8]), torch.Size([8, 64]))
        >>> layer(torch.ones(5, 64)).shape
        torch.Size([5, 32])
    """

    dense_type = nn.Linear
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rank: Rank = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._take(nn.Linear(in_features, out_features, bias, device=device, dtype=dtype), rank)

    @classmethod
    def from_linear(cls, layer: nn.Linear, rank: Rank = None) -> Self:
        """Return the decomposition of a layer, its best approximation of this rank (eq. 3).

        The weight is decomposed and the bias copied; ``layer`` stays as it is. Factors are in the
        dtype and on the device of the weight and train if it does.

        Raises:
            TypeError: not an ``nn.Linear``, or a subclass with a forward of its own; a rank of
                another type than ``resolve_rank`` takes.
            ValueError: hooks, parametrizations, a weight without values or with NaN or Inf; a
                rank out of range.

        Example:
            >>> dense = torch.nn.Linear(6, 4)
            >>> layer = sk.DecomposedLinear.from_linear(dense)
            >>> torch.allclose(layer.to_linear().weight, dense.weight, atol=1e-5)
            True
        """
        return cls._made(layer, rank)

    def _take(self, layer: nn.Linear, rank: Rank) -> None:
        check_source(layer, nn.Linear)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._decompose(layer.weight, rank, like=layer.weight)
        self._set_bias(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return x (U Sigma Vh)^T + bias: (..., in_features) to (..., out_features).

        Args:
            x: (..., in_features), in the dtype of the factors.

        Raises:
            ValueError: x of another last size, or of another dtype than the factors (with
                ``torch.autocast``, after its casts).
        """
        U = self.U
        if x.dtype != U.dtype or x.shape[-1:] != (self.in_features,) or x.dim() < 2:
            return self._unusual(x)
        y: Tensor = _usv_matmul(x, U, self.Sigma, self.Vh, self.bias)
        return y

    def _unusual(self, x: Tensor) -> Tensor:
        """Run a single vector, or another dtype under autocast; refuse what cannot run."""
        return self._checked(x, self.U, self.bias)

    def outputs(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Return the outputs ``start`` to ``stop - 1`` of ``forward`` alone.

        Args:
            x: as for ``forward``.
            start, stop: the range of outputs.

        Raises:
            ValueError: not 0 <= start < stop <= out_features; what ``forward`` refuses.
        """
        if not 0 <= start < stop <= self.out_features:
            raise ValueError(
                f"start is {start}, stop {stop}; expected 0 <= start < stop <= {self.out_features}"
            )
        bias = None if self.bias is None else self.bias[start:stop]
        return self._checked(x, self.U[start:stop], bias)

    def _checked(self, x: Tensor, U: Tensor, bias: Tensor | None) -> Tensor:
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"x is {tuple(x.shape)}; expected (..., {self.in_features})")
        if autocast_dtype(x) != autocast_dtype(U):
            raise ValueError(f"x is {x.dtype}; expected {U.dtype}, as the factors are")
        rows = x if x.dim() > 1 else x.unsqueeze(0)
        y: Tensor = _usv_matmul(rows, U, self.Sigma, self.Vh, bias)
        return y.reshape(*x.shape[:-1], U.shape[0])

    def to_linear(self) -> nn.Linear:
        """Return the ``nn.Linear`` with the weight U Sigma Vh (eq. 4), detached."""
        return self._dense(self.in_features, self.out_features, self.weight, self.bias)

    to_dense = to_linear

    def _thin(self) -> nn.Sequential:
        first = self._dense(self.in_features, self.rank, self.Vh, None)
        second = self._dense(self.rank, self.out_features, self._left(), self.bias)
        return nn.Sequential(first, second).train(self.training)

    def _dense(self, n: int, m: int, weight: Tensor, bias: Tensor | None) -> nn.Linear:
        made = uninitialised(nn.Linear, n, m, like=self.U, bias=bias is not None)
        self._fill(made, weight, bias)
        return made

    def extra_repr(self) -> str:
        """Return the sizes, the rank, and whether there is a bias."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"rank={self.rank}, bias={self.bias is not None}"
        )
