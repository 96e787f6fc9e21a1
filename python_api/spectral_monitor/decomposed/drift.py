"""How far trained factors are from those of a singular value decomposition.

Decomposed learning starts from orthonormal U and Vh and a diagonal Sigma and keeps neither
(appendix C and figures 16 to 18 of "Decomposed Learning and Grokking"). These numbers say how
much is left of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from spectral_monitor.decomposed.layers.layer import DecomposedLayer
from spectral_monitor.model.getters import without_wrappers
from spectral_monitor.model.parameters import unwrap
from torch import Tensor, nn

from spectral_kernels.svd.op import svdvals_list


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

    Example:
        >>> model = sk.decompose_model(torch.nn.Sequential(torch.nn.Linear(8, 4)), {"*": None})
        >>> drifts = sk.decomposition_drift(model)
        >>> max(drifts["0"]) < 1e-5  # nothing was trained yet
        True
        >>> sorted(drifts.scalars())  # for monitor.step(step, **scalars)
        ['drift/0.Sigma', 'drift/0.U', 'drift/0.Vh']
    """
    inner = unwrap(model)
    if not isinstance(inner, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    layers = {
        without_wrappers(name): module
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
    defects, shares = [], []
    for layer in layers:
        # One layer at a time: factors in float64 are twice the model.
        U, Sigma, Vh = (factor.detach().double() for factor in layer.factors())
        defects += [_defect(U.mT), _defect(Vh)]
        shares.append(_off_diagonal(Sigma))
    norms = _spectral_norms(defects)
    host = shares[0].device
    columns = [[x.to(host) for x in column] for column in (norms[::2], norms[1::2], shares)]
    rows: list[list[float]] = torch.stack([torch.stack(column) for column in columns]).mT.tolist()
    return rows


def _defect(rows: Tensor) -> Tensor:
    """R R^T - I for (..., k, length)."""
    defect = rows @ rows.mT
    defect.diagonal(dim1=-2, dim2=-1).sub_(1)
    return defect


def _spectral_norms(matrices: list[Tensor]) -> list[Tensor]:
    """The 2-norm of each, the largest of a batch; all of a device in one call."""
    norms: dict[int, Tensor] = {}
    for device in {matrix.device for matrix in matrices}:
        here = [i for i, matrix in enumerate(matrices) if matrix.device == device]
        spectra = svdvals_list([matrices[i] for i in here])
        norms.update(zip(here, (S[..., 0].max() for S in spectra), strict=True))
    return [norms[i] for i in range(len(matrices))]


def _off_diagonal(Sigma: Tensor) -> Tensor:
    """||Sigma - diag(Sigma)||_F / ||Sigma||_F, the largest of a batch; 0 for a zero Sigma."""
    # Scaled first, so that no square leaves the range of float64.
    scale = Sigma.abs().amax(dim=(-2, -1), keepdim=True)
    scaled = Sigma / torch.where(scale == 0, torch.ones_like(scale), scale)
    off = scaled - torch.diag_embed(scaled.diagonal(dim1=-2, dim2=-1))
    whole = torch.linalg.matrix_norm(scaled)
    share: Tensor = torch.linalg.matrix_norm(off) / torch.where(whole == 0, 1.0, whole)
    return share.amax()
