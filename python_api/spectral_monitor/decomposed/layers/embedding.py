"""An embedding whose table is a trained product U Sigma Vh."""

from __future__ import annotations

from typing import Self

import torch
from spectral_monitor.decomposed.layers.layer import DecomposedLayer, uninitialised
from spectral_monitor.decomposed.layers.plain import check_source
from spectral_monitor.decomposed.layers.ranks import Rank
from torch import Tensor, nn
from torch.nn import functional

from spectral_kernels.runtime.numerics import autocast_off, result_dtype


class DecomposedEmbedding(DecomposedLayer):
    """Rows of the table U Sigma Vh, in place of ``nn.Embedding``; all three factors train.

    "Decomposed Learning and Grokking" (anonymous, under review), section 3, eq. 1-4, and
    Tables 1 and 2. The table is formed only where there are at least as many ids as it has rows:
    then it is no larger than the result, and fewer products are needed.

    Args:
        num_embeddings: m, the rows of the table.
        embedding_dim: n.
        padding_idx: a row that is zero and stays so: this row of U is zero and has no gradient,
            and a zero row of U adds nothing to the gradients of Sigma and Vh.
        rank: k, as ``resolve_rank`` reads it; the full rank if None.
        device: where the parameters are; not the meta device.
        dtype: of the parameters: float16, bfloat16, float32 or float64.

    The factors are the SVD of what ``nn.Embedding`` would draw, from the same random numbers.
    ``max_norm``, ``scale_grad_by_freq`` and ``sparse`` change rows of a table, or of its
    gradient, one by one; no row of a product stands alone, and there are no such options.

    Example:
        >>> layer = sk.DecomposedEmbedding(100, 16, rank=4)
        >>> layer(torch.tensor([[3, 1, 4]])).shape
        torch.Size([1, 3, 16])
    """

    dense_type = nn.Embedding

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        rank: Rank = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dense = nn.Embedding(
            num_embeddings, embedding_dim, padding_idx=padding_idx, device=device, dtype=dtype
        )
        self._take(dense, rank)

    @classmethod
    def from_embedding(cls, layer: nn.Embedding, rank: Rank = None) -> Self:
        """Return the decomposition of a layer, its best approximation of this rank (eq. 3).

        ``layer`` stays as it is. Factors are in the dtype and on the device of the weight and
        train if it does.

        Raises:
            TypeError: not an ``nn.Embedding``, or a subclass with a forward of its own; a rank of
                another type than ``resolve_rank`` takes.
            ValueError: ``max_norm``, ``scale_grad_by_freq`` or ``sparse``; a row ``padding_idx``
                that is not zero; hooks, parametrizations, a weight without values or with NaN or
                Inf; a rank out of range.

        Example:
            >>> dense = torch.nn.Embedding(10, 4)
            >>> layer = sk.DecomposedEmbedding.from_embedding(dense)
            >>> torch.allclose(layer.to_embedding().weight, dense.weight, atol=1e-5)
            True
        """
        return cls._made(layer, rank)

    def _take(self, layer: nn.Embedding, rank: Rank) -> None:
        check_source(layer, nn.Embedding)
        _check_options(layer)
        self.num_embeddings, self.embedding_dim = layer.num_embeddings, layer.embedding_dim
        self.padding_idx = layer.padding_idx
        self._decompose(layer.weight, rank, like=layer.weight)
        if self.padding_idx is not None:
            # The SVD leaves rounding there, and anything where a singular value is zero.
            self.U.data[self.padding_idx] = 0

    def forward(self, ids: Tensor) -> Tensor:
        """Return rows of U Sigma Vh: integers (...) to (..., embedding_dim), in U's dtype.

        That dtype under autocast too, as ``nn.Embedding``.

        Args:
            ids: (...) int32 or int64, indices of rows.
        """
        with autocast_off(ids.device.type):
            return self._rows(ids)

    def _rows(self, ids: Tensor) -> Tensor:
        dtype = result_dtype(self.U.dtype)
        # An exported program has one way for all sizes, and must not ask for them.
        exporting = torch.compiler.is_exporting()
        # As many tokens as rows: the table is no larger than the result, and cheaper.
        if not exporting and ids.numel() >= self.num_embeddings:
            return functional.embedding(ids, self.weight, self.padding_idx)
        h = functional.embedding(ids, self.U, self.padding_idx).to(dtype)
        Sigma, Vh = self.Sigma.to(dtype), self.Vh.to(dtype)
        by_rows = not exporting and ids.numel() < self.embedding_dim
        y = h @ Sigma @ Vh if by_rows else h @ (Sigma @ Vh)
        return y.to(self.U.dtype)

    def to_embedding(self) -> nn.Embedding:
        """Return the ``nn.Embedding`` with the table U Sigma Vh (eq. 4), detached."""
        return self._dense(self.embedding_dim, self.weight)

    to_dense = to_embedding

    def _thin(self) -> nn.Sequential:
        first = self._dense(self.rank, self._left())
        second = uninitialised(nn.Linear, self.rank, self.embedding_dim, like=self.U, bias=False)
        self._fill(second, self.Vh.mT, None)
        return nn.Sequential(first, second).train(self.training)

    def _dense(self, columns: int, table: Tensor) -> nn.Embedding:
        made = uninitialised(
            nn.Embedding, self.num_embeddings, columns, like=self.U, padding_idx=self.padding_idx
        )
        self._fill(made, table, None)
        return made

    def extra_repr(self) -> str:
        """Return the sizes, the rank and the padded row."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}, rank={self.rank}{padding}"


def _check_options(layer: nn.Embedding) -> None:
    """Refuse what treats rows of the table, or of its gradient, one by one."""
    options = {
        "max_norm": (layer.max_norm, None),
        "scale_grad_by_freq": (layer.scale_grad_by_freq, False),
        "sparse": (layer.sparse, False),
    }
    for name, (given, expected) in options.items():
        if given != expected:
            raise ValueError(
                f"the embedding has {name}={given}; expected {expected}: the rows of a product "
                "share Sigma and Vh and cannot be treated one by one"
            )
    row = layer.padding_idx
    if row is not None and bool(layer.weight[row].any()):
        raise ValueError(
            f"row {row} (padding_idx) of the embedding is not zero; expected zeros: any other row "
            "of a product would move while Sigma and Vh train"
        )
