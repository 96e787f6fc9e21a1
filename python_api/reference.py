"""Singular vectors that later ones are compared with (Eq. 5 of Yunis et al.)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from python_api.frame import Array
from python_api.matrices import Matrix
from python_api.solvers import to_arrays
from spectral_kernels.alignment.op import agreement_list
from spectral_kernels.results import SVD

__all__ = ["Reference"]


class Reference:
    """Leading left and right vectors by matrix name, at most ``k`` of each.

    They take k (m + n) numbers of a matrix of m n, twice the matrix at the very most.

    Args:
        given: "init", "previous", SVDs (in the order of the matrices, or by name) or ``None``.
        matrices: those under watch.
        k: how many vectors to keep and compare.
    """

    def __init__(
        self,
        given: str | Sequence[SVD] | Mapping[str, SVD] | None,
        matrices: Sequence[Matrix],
        k: int,
    ) -> None:
        self._matrices = matrices
        self._k = k
        self._vectors: dict[str, SVD] = {}
        self._mode = given if isinstance(given, str) else "given" if given is not None else None
        if isinstance(given, str):
            if given not in ("init", "previous"):
                raise ValueError(
                    f"reference: expected 'init', 'previous', SVDs or None, got {given!r}"
                )
        elif given is not None:
            self._take(given)
        self._compared = [
            i for i, m in enumerate(matrices) if self.wants_all or m.name in self._vectors
        ]

    @property
    def wants_init(self) -> bool:
        """Whether the weights as they are now are to be remembered."""
        return self._mode == "init"

    @property
    def wants_previous(self) -> bool:
        """Whether every measured step is to be remembered."""
        return self._mode == "previous"

    @property
    def wants_all(self) -> bool:
        """Whether every matrix is compared, not only those that SVDs were given for."""
        return self.wants_init or self.wants_previous

    @property
    def described(self) -> str:
        """One line for `explain`."""
        told = {
            "init": "the weights when the monitor was made",
            "previous": "the last measured step",
            "given": f"given SVDs of {len(self._compared)} matrices",
        }
        return told.get(self._mode or "", "none")

    def __contains__(self, name: str) -> bool:
        return name in self._vectors

    def remember(self, svds: Sequence[SVD], finite: Sequence[bool]) -> None:
        """Keep the vectors of these SVDs; those of a matrix with NaN stay as they were."""
        for matrix, svd, ok in zip(self._matrices, svds, finite, strict=True):
            if ok:
                # Copies: the SVD may be a view of one block for all matrices.
                self._vectors[matrix.name] = SVD(
                    svd.U[:, : self._k].clone(), svd.S.new_empty(0), svd.Vh[: self._k].clone()
                )

    def agreement(self, svds: Sequence[SVD]) -> dict[str, Array]:
        """|u_i . u'_i| |v_i . v'_i| by name; NaN where no reference is known yet."""
        names, pairs = [], []
        values: dict[str, Array] = {}
        for i in self._compared:
            name, svd = self._matrices[i].name, svds[i]
            known = self._vectors.get(name)
            if known is None:
                values[name] = np.full(min(self._k, len(svd.S)), np.nan, dtype=np.float32)
                continue
            if known.U.dtype != svd.U.dtype or known.U.device != svd.U.device:
                known = SVD(known.U.to(svd.U), known.S, known.Vh.to(svd.Vh))
                self._vectors[name] = known
            values[name] = np.empty(0)
            names.append(name)
            pairs.append((svd, known))
        values.update(zip(names, to_arrays(agreement_list(pairs, self._k)), strict=True))
        return values

    def state(self) -> dict[str, Any]:
        """For ``state_dict``."""
        return {
            "mode": self._mode,
            "vectors": {name: [svd.U, svd.Vh] for name, svd in self._vectors.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the vectors of a state."""
        if state["mode"] != self._mode:
            raise ValueError(
                f"state: its reference is {state['mode']!r}, this monitor's is {self._mode!r}"
            )
        shapes = {matrix.name: matrix.shape for matrix in self._matrices}
        loaded = {}
        for name, (U, Vh) in state["vectors"].items():
            if name not in shapes or (U.shape[0], Vh.shape[1]) != shapes[name]:
                raise ValueError(
                    f"state: reference vectors of {name!r} have the sides "
                    f"{(U.shape[0], Vh.shape[1])}, the matrix is {shapes.get(name, 'unknown')}"
                )
            loaded[name] = SVD(U.clone(), U.new_empty(0), Vh.clone())
        self._vectors = loaded

    def _take(self, given: Sequence[SVD] | Mapping[str, SVD]) -> None:
        names = [matrix.name for matrix in self._matrices]
        if isinstance(given, Mapping):
            unknown = [name for name in given if name not in names]
            if unknown:
                raise ValueError(f"reference: no matrix is called {', '.join(map(repr, unknown))}")
            entries = dict(given)
        else:
            if len(given) != len(names):
                raise ValueError(
                    f"reference: {len(given)} SVDs for {len(names)} matrices: {', '.join(names)}"
                )
            entries = dict(zip(names, given, strict=True))
        shapes = {matrix.name: matrix.shape for matrix in self._matrices}
        for name, svd in entries.items():
            U, Vh = torch.as_tensor(svd.U).detach(), torch.as_tensor(svd.Vh).detach()
            if U.dim() != 2 or Vh.dim() != 2 or (U.shape[0], Vh.shape[1]) != shapes[name]:
                raise ValueError(
                    f"reference: the SVD of {name!r} has U {tuple(U.shape)} and Vh "
                    f"{tuple(Vh.shape)}, the matrix is {shapes[name]}"
                )
            self._vectors[name] = SVD(U[:, : self._k], U.new_empty(0), Vh[: self._k])
