"""Argument checks. Each message names what was given and what is expected."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_kernels.runtime.numerics import DTYPE_CODES


def check_dtype(A: Tensor, name: str) -> None:
    """Raise TypeError unless ``A`` is a dense tensor of one of the four floating dtypes."""
    if A.dtype not in DTYPE_CODES:
        raise TypeError(
            f"{name} has dtype {str(A.dtype).removeprefix('torch.')}; "
            "expected float16, bfloat16, float32 or float64"
        )
    if A.layout != torch.strided:
        raise TypeError(f"{name} has layout {A.layout}; expected a dense (strided) tensor")


def check_matrix(A: Tensor, name: str = "A") -> None:
    """Raise unless ``A`` is a floating tensor with at least two dimensions."""
    check_dtype(A, name)
    if A.dim() < 2:
        raise ValueError(
            f"{name} has shape {tuple(A.shape)}; expected at least two dimensions (..., m, n)"
        )


def check_factors(U: Tensor, Sigma: Tensor, Vh: Tensor, of: str = "") -> None:
    """Raise unless these are floating tensors on one device that chain to U Sigma Vh.

    ``of`` follows their names in messages.
    """
    check_matrix(U, f"U{of}")
    check_dtype(Sigma, f"Sigma{of}")
    check_matrix(Vh, f"Vh{of}")
    check_devices(**{f"U{of}": U, f"Sigma{of}": Sigma, f"Vh{of}": Vh})
    *batch, _, k = U.shape
    diagonal, dense = [*batch, k], [*batch, k, k]
    if list(Vh.shape[:-1]) != diagonal or list(Sigma.shape) not in (diagonal, dense):
        raise ValueError(
            f"shapes do not chain{of}: U is {tuple(U.shape)}, Sigma {tuple(Sigma.shape)}, Vh "
            f"{tuple(Vh.shape)}; expected (..., m, k), (..., k) or (..., k, k), (..., k, n)"
        )


def names(name: str, count: int, single: bool) -> list[str]:
    """Return the names by which messages speak of the entries of an argument."""
    return [name] if single else [f"{name}[{i}]" for i in range(count)]


def check_matrices(tensors: Sequence[Tensor], name: str = "A") -> None:
    """Check every matrix of an argument, and that all are on one device."""
    for tensor, label in zip(tensors, names(name, len(tensors), len(tensors) == 1), strict=True):
        check_matrix(tensor, label)
    check_devices(**{f"{name}[{i}]": tensor for i, tensor in enumerate(tensors)})


def check_devices(**tensors: Tensor) -> None:
    """Raise ValueError unless all ``tensors`` are on one device."""
    if len({tensor.device for tensor in tensors.values()}) > 1:
        places = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        raise ValueError(f"tensors on different devices: {places}; expected one device")


def check_rank(k: int, A: Tensor, name: str = "A") -> None:
    """Raise ValueError unless 1 <= k <= min(m, n)."""
    r = min(A.shape[-2:])
    if not isinstance(k, int) or isinstance(k, bool):
        raise TypeError(f"k is {k!r}; expected an integer")
    if not 1 <= k <= r:
        raise ValueError(
            f"k is {k}; expected 1 <= k <= min(m, n) = {r} for {name} of shape {tuple(A.shape)}"
        )


def check_count(value: int, name: str, least: int) -> None:
    """Raise unless ``value`` is an integer of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; expected an integer")
    if value < least:
        raise ValueError(f"{name} is {value}; expected at least {least}")


def check_finite(tensors: Sequence[Tensor], name: str, single: bool) -> None:
    """Raise ValueError naming the first matrix that holds NaN or Inf. Synchronises a GPU."""
    for tensor, label in zip(tensors, names(name, len(tensors), single), strict=True):
        bad = ~torch.isfinite(tensor).flatten(-2).all(dim=-1)
        if bool(bad.any()):
            index = tuple(bad.nonzero()[0].tolist())
            where = f"{label}[{', '.join(map(str, index))}]" if index else label
            raise ValueError(f"{where} holds NaN or Inf; expected finite entries")


def check_equal(what: str, first: tuple[str, int], second: tuple[str, int]) -> None:
    """Raise ValueError unless two sizes that must chain are equal."""
    if first[1] != second[1]:
        raise ValueError(
            f"shapes do not chain: {first[0]} is {first[1]} and {second[0]} is {second[1]}; "
            f"expected equal {what}"
        )
