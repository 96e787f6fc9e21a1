"""Attention whose keys and values are made from a few latent numbers (DeepSeek-V2 and -V3).

The input is brought to a small number of latents by ``kv_a`` (that of the queries, optionally, by
``q_a``), and ``kv_b`` makes from them, for each head, keys without a position and values. The rest
of the keys, which is rotated by the position and is the same for all heads, comes from the last
rows of ``kv_a`` and meets the last rows of each query head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spectral_monitor.model.config import setting
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.model.submatrices import submatrix
from spectral_monitor.pairs.attention import by_head, outputs_of
from spectral_monitor.pairs.ports import Pair, Port, Rejected, connect, entry_port, exit_port

_SIZES = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """The weights by role: "q_a" and "q_b" or "q", "kv_a", "kv_b", "o"."""

    roles: Mapping[str, Matrix]
    heads: int
    sizes: tuple[int, int, int] | None
    """Rows of a head: keys without and with a position, values."""

    @classmethod
    def of(cls, roles: Mapping[str, Sequence[Matrix]], heads: int, config: Any) -> LatentAttention:
        """The attention with the sizes that the model's configuration has."""
        plain, rotated, values = (setting(config, name) for name in _SIZES)
        sizes = None if None in (plain, rotated, values) else (plain, rotated, values)
        return cls({role: matrices[0] for role, matrices in roles.items()}, heads, sizes)

    def entries(self) -> list[Port]:
        """Ports where the layer's input arrives."""
        return [entry_port(self.roles[r]) for r in ("q_a", "q", "kv_a") if r in self.roles]

    def exits(self) -> list[Port]:
        """Ports where the layer's output leaves."""
        return [exit_port(self.roles["o"])] if "o" in self.roles else []

    def pairs_with(self, role: str, other: Matrix) -> Iterator[Pair | Rejected]:
        """What an adapter beside a role meets: not told, its rows are not laid out here."""
        yield Rejected(other.name, "", f"an adapter beside {role} of a latent attention: what it "
                       "meets is not known without sk.trace")  # fmt: skip

    def pairs(self) -> Iterator[Pair | Rejected | None]:
        """The pairs inside the attention."""
        roles = self.roles
        if "q_a" in roles and "q_b" in roles:
            yield connect(exit_port(roles["q_a"]), entry_port(roles["q_b"]), "consecutive layers")
        queries = roles.get("q_b") or roles.get("q")
        if queries is None or not {"kv_a", "kv_b", "o"} <= roles.keys():
            return
        try:
            yield from self._by_head(queries, roles["kv_a"], roles["kv_b"], roles["o"])
        except ValueError as error:
            yield Rejected(queries.name, roles["kv_b"].name, str(error))

    def _by_head(
        self, queries: Matrix, down: Matrix, up: Matrix, output: Matrix
    ) -> Iterator[Pair | Rejected | None]:
        if self.sizes is None:
            raise ValueError(f"{', '.join(_SIZES)} are not known: give config=, or sk.trace")
        plain, rotated, values = self.sizes
        latents = submatrix(down, "latents", rows=[(0, up.shape[1])])
        yield connect(exit_port(latents), entry_port(up), "latents feed keys and values")
        position = submatrix(down, "rotated", rows=[(up.shape[1], up.shape[1] + rotated)])
        q, k = f"{queries.name}[q", f"{up.name}[k"
        yield by_head(
            (f"{q}]", f"{k}]"),
            self._rows(queries, "q", plain + rotated, 0, plain),
            self._rows(up, "k", plain + values, 0, plain),
            "queries meet keys in each head",
        )
        yield by_head(
            (f"{q}, rotated]", position.name),
            self._rows(queries, "q, rotated", plain + rotated, plain, rotated),
            [outputs_of(position)],
            "rotated queries of each head meet rotated keys",
        )
        yield by_head(
            (f"{up.name}[v, by head]", f"{output.name}[by head]"),
            self._rows(up, "v", plain + values, plain, values),
            [entry_port(submatrix(output, f"head {h}", columns=[(h * values, (h + 1) * values)]))
             for h in range(self.heads)],
            "values meet the output in each head",
        )  # fmt: skip

    def _rows(self, matrix: Matrix, label: str, stride: int, start: int, size: int) -> list[Port]:
        """Ports of some rows of every head."""
        if matrix.shape[0] != self.heads * stride:
            raise ValueError(
                f"{matrix.name} has {matrix.shape[0]} rows, expected {self.heads} x {stride}"
            )
        return [
            outputs_of(
                submatrix(matrix, f"{label}, head {head}", rows=[
                    (head * stride + start, head * stride + start + size)
                ])
            )
            for head in range(self.heads)
        ]  # fmt: skip
