"""Convolutions whose kernel, as a matrix, is a trained product U Sigma Vh.

The kernel (c_out, c_in / groups, *taps) is a matrix of c_out rows, and one of c_out / groups rows
for each group. Vh holds k filters over all taps, and U Sigma mixes their k channels: a convolution
with k filters, then one of a single tap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from spectral_monitor.decomposed.layers.layer import DecomposedLayer, uninitialised
from spectral_monitor.decomposed.layers.plain import check_source
from spectral_monitor.decomposed.layers.ranks import Rank
from torch import Tensor, nn
from torch.nn import functional

from spectral_kernels.runtime.numerics import autocast_off

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
Size = int | tuple[int, ...]

# What nn.Conv keeps of its arguments, apart from its channels.
_OPTIONS = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


class DecomposedConv(DecomposedLayer):
    """What the three convolutions share: the arguments of the dense one, and ``rank``.

    "Decomposed Learning and Grokking" (anonymous, under review), section 3, eq. 1-4, for the
    (c_out, c_in * taps) matrix of a convolution; with groups, for the matrix of each group, and
    the factors have a first dimension for the groups. The k channels between are in the dtype of
    the input.

    Args:
        in_channels: c_in.
        out_channels: c_out.
        kernel_size: taps along each axis.
        stride: as in the dense layer, and so are ``padding`` ("same" and "valid" too),
            ``dilation``, ``groups`` and ``padding_mode``.
        bias: whether a bias is added and trained.
        rank: k, as ``resolve_rank`` reads it for (c_out / groups, c_in / groups * taps); the
            full rank if None.
        device: where the parameters are; not the meta device.
        dtype: of the parameters: float16, bfloat16, float32 or float64.

    The factors are the SVD of what the dense layer would draw, from the same random numbers.
    """

    bias: nn.Parameter | None
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    dense_type: ClassVar[Any]
    _convolve: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        rank: Rank = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dense = self.dense_type(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
        )
        self._take(dense, rank)

    @classmethod
    def from_conv(cls, layer: Conv, rank: Rank = None) -> Self:
        """Return the decomposition of a layer, its best approximation of this rank (eq. 3).

        The kernel is decomposed and the bias copied; ``layer`` stays as it is. Factors are in the
        dtype and on the device of the kernel and train if it does.

        Raises:
            TypeError: not the convolution of this class, such as a transposed one, or a subclass
                with a forward of its own; a rank of another type than ``resolve_rank`` takes.
            ValueError: hooks, parametrizations, a kernel without values or with NaN or Inf; a
                rank out of range.

        Example:
            >>> dense = torch.nn.Conv2d(3, 8, 3)
            >>> layer = sk.DecomposedConv2d.from_conv(dense)
            >>> torch.allclose(layer.to_conv().weight, dense.weight, atol=1e-5)
            True
        """
        return cls._made(layer, rank)

    def _take(self, layer: Conv, rank: Rank) -> None:
        check_source(layer, self.dense_type)
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        for option in _OPTIONS:
            setattr(self, option, getattr(layer, option))
        # As functional.pad wants it: last axis first, both ends.
        self._both_ends = list(layer._reversed_padding_repeated_twice)
        matrix = layer.weight.flatten(1)
        if self.groups > 1:
            matrix = matrix.reshape(self.groups, -1, matrix.shape[1])
        self._decompose(matrix, rank, like=layer.weight)
        self._set_bias(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution: (batch, c_in, *sizes) or (c_in, *sizes) to c_out channels.

        Args:
            x: in the dtype of the factors.
        """
        m, n = self.shape
        # Sigma goes to the side with fewer entries; the convolutions cast, not this product.
        with autocast_off(self.U.device.type):
            U, Vh = (self.U @ self.Sigma, self.Vh) if m <= n else (self.U, self.Sigma @ self.Vh)
        padding: tuple[int, ...] | str | int = self.padding
        if self.padding_mode != "zeros":
            x = functional.pad(x, self._both_ends, mode=self.padding_mode)
            padding = 0
        filters = Vh.reshape(-1, self.in_channels // self.groups, *self.kernel_size)
        h = self._run(x, filters, None, self.stride, padding, self.dilation, self.groups)
        return self._run(h, self._single_tap(U), self.bias, 1, 0, 1, self.groups)

    def _run(self, *arguments: Any) -> Tensor:
        return type(self)._convolve(*arguments)

    def _single_tap(self, U: Tensor) -> Tensor:
        return U.reshape(self.out_channels, -1, *(1 for _ in self.kernel_size))

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(c_out, c_in / groups, *taps)."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def to_conv(self) -> Conv:
        """Return the dense convolution with the kernel U Sigma Vh (eq. 4), detached."""
        return self._dense(self.out_channels, self.weight, self.bias)

    to_dense = to_conv

    def _thin(self) -> nn.Sequential:
        filters = self.groups * self.rank
        shape = (filters, *self.weight_shape[1:])
        first = self._dense(filters, self.Vh.reshape(shape), None)
        second: nn.Module = uninitialised(
            self.dense_type,
            filters,
            self.out_channels,
            1,
            like=self.U,
            groups=self.groups,
            bias=self.bias is not None,
        )
        self._fill(second, self._single_tap(self._left()), self.bias)
        return nn.Sequential(first, second).train(self.training)

    def _dense(self, channels: int, weight: Tensor, bias: Tensor | None) -> Conv:
        options = {name: getattr(self, name) for name in _OPTIONS}
        made: Conv = uninitialised(
            self.dense_type,
            self.in_channels,
            channels,
            like=self.U,
            bias=bias is not None,
            **options,
        )
        self._fill(made, weight, bias)
        return made

    def extra_repr(self) -> str:
        """Return the channels, the taps, the rank and the options."""
        options = [f"{self.in_channels}, {self.out_channels}", f"rank={self.rank}"]
        options += [f"{name}={getattr(self, name)!r}" for name in _OPTIONS]
        return ", ".join([*options, f"bias={self.bias is not None}"])


class DecomposedConv1d(DecomposedConv):
    """``nn.Conv1d`` with a kernel that is U Sigma Vh; see `DecomposedConv`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype: as of ``nn.Conv1d``.
        rank: an int, a share of the full rank, "break-even", or None for the full rank.

    Example:
        >>> layer = sk.DecomposedConv1d(3, 8, kernel_size=5, rank=4)
        >>> layer(torch.ones(2, 3, 20)).shape
        torch.Size([2, 8, 16])
    """

    dense_type = nn.Conv1d
    _convolve = staticmethod(functional.conv1d)


class DecomposedConv2d(DecomposedConv):
    """``nn.Conv2d`` with a kernel that is U Sigma Vh; see `DecomposedConv`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype: as of ``nn.Conv2d``.
        rank: an int, a share of the full rank, "break-even", or None for the full rank.

    Example:
        >>> layer = sk.DecomposedConv2d(3, 8, kernel_size=3, padding=1, rank=4)
        >>> layer(torch.ones(2, 3, 10, 10)).shape
        torch.Size([2, 8, 10, 10])
    """

    dense_type = nn.Conv2d
    _convolve = staticmethod(functional.conv2d)


class DecomposedConv3d(DecomposedConv):
    """``nn.Conv3d`` with a kernel that is U Sigma Vh; see `DecomposedConv`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype: as of ``nn.Conv3d``.
        rank: an int, a share of the full rank, "break-even", or None for the full rank.

    Example:
        >>> layer = sk.DecomposedConv3d(1, 4, kernel_size=2, rank=2)
        >>> layer(torch.ones(2, 1, 3, 3, 3)).shape
        torch.Size([2, 4, 2, 2, 2])
    """

    dense_type = nn.Conv3d
    _convolve = staticmethod(functional.conv3d)
