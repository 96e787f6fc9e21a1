"""How far trained factors are from those of a singular value decomposition.

Decomposed learning starts from orthonormal U and Vh and a diagonal Sigma and keeps neither
(appendix C and figures 16 to 18 of "Decomposed Learning and Grokking"). These numbers say how
much is left of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from python_api.decomposed.layer import DecomposedLayer
from python_api.parameters import clean, unwrap
from spectral_kernels.svd.op import svdvals_list

__all__ = ["Drift", "Drifts", "decomposition_drift"]


class Drift(NamedTuple):
    """Distances of one layer's factors from a decomposition; 0, 0, 0 is one."""

    U: float
    """||U^T U - I||_2."""
    Vh: float
    """||Vh Vh^T - I||_2."""
    Sigma: float
    """Share of Sigma's Frobenius norm that is off its diagonal, in [0, 1]."""


class Drifts(dict[str, Drift]):
    """Layer name -> `Drift`."""

    def scalars(self, prefix: str = "drift") -> dict[str, float]:
        """Flat names and numbers, ``drift/<layer>.U`` and so on, for a recorder::

        monitor.step(step, loss=loss, **sk.decomposition_drift(model).scalars())
        """
        return {
            f"{prefix}/{name}.{factor}" if name else f"{prefix}/{factor}": value
            for name, drift in self.items()
            for factor, value in zip(Drift._fields, drift, strict=True)
        }


def decomposition_drift(model: nn.Module) -> Drifts:
    """Return how far the factors of every decomposed layer are from a decomposition.

    Computed in float64. Each group of a grouped convolution has factors of its own; the largest
    number counts. A layer with NaN or Inf gives NaN for the factors that have it.

    Args:
        model: a module, also compiled or wrapped for data parallelism, or one decomposed layer,
            whose name is then ``""``.

    Returns:
        `Drifts`: layer name -> ``Drift(U, Vh, Sigma)``, plain floats. Synchronises a GPU once.

    Raises:
        TypeError: not a module.
        ValueError: no decomposed layer.
    """
    inner = unwrap(model)
    if not isinstance(inner, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    layers = {
        clean(name): module
        for name, module in inner.named_modules()
        if isinstance(module, DecomposedLayer)
    }
    if not layers:
        raise ValueError("the model has no decomposed layer; expected one made by decompose_model")
    with torch.no_grad():
        rows = _measure(layers.values())
    return Drifts({name: Drift(*row) for name, row in zip(layers, rows, strict=True)})


def _measure(layers: Iterable[DecomposedLayer]) -> list[list[float]]:
    """U, Vh and Sigma of every layer, brought to the host together."""
    factors = [tuple(factor.detach().double() for factor in layer.factors()) for layer in layers]
    distances = _from_orthonormal([side for U, _, Vh in factors for side in (U.mT, Vh)])
    shares = [_off_diagonal(Sigma) for _, Sigma, _ in factors]
    host = shares[0].device
    table = [
        torch.stack([distances[2 * i], distances[2 * i + 1], share]).to(host)
        for i, share in enumerate(shares)
    ]
    rows: list[list[float]] = torch.stack(table).tolist()
    return rows


def _from_orthonormal(sides: list[Tensor]) -> list[Tensor]:
    """||R R^T - I||_2 of each (..., k, length), the largest of a batch."""
    defects = []
    for rows in sides:
        defect = rows @ rows.mT
        defect.diagonal(dim1=-2, dim2=-1).sub_(1)
        defects.append(defect)
    by_device: dict[torch.device, list[int]] = {}
    for i, defect in enumerate(defects):
        by_device.setdefault(defect.device, []).append(i)
    norms: dict[int, Tensor] = {}
    for indices in by_device.values():
        spectra = svdvals_list([defects[i] for i in indices])
        norms.update(zip(indices, (S[..., 0].max() for S in spectra), strict=True))
    return [norms[i] for i in range(len(sides))]


def _off_diagonal(Sigma: Tensor) -> Tensor:
    """||Sigma - diag(Sigma)||_F / ||Sigma||_F, the largest of a batch; 0 for a zero core."""
    # Scaled first, so that no square leaves the range of float64.
    scale = Sigma.abs().amax(dim=(-2, -1), keepdim=True)
    core = Sigma / torch.where(scale == 0, torch.ones_like(scale), scale)
    off = core - torch.diag_embed(core.diagonal(dim1=-2, dim2=-1))
    whole = torch.linalg.matrix_norm(core)
    share: Tensor = torch.linalg.matrix_norm(off) / torch.where(whole == 0, 1.0, whole)
    return share.amax()
