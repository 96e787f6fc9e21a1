"""Which variants of each Triton kernel are compiled ahead of time: one file an operation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """A kernel with the types and constants of one specialisation.

    Args:
        name: unique in its operation.
        kernel: what ``triton.jit`` returned.
        signature: argument -> "*fp32", "i64" and so on; constants are left out.
        constants: argument -> value.
        options: num_warps, num_stages.
        aligned: arguments whose address or value is a multiple of 16, which the launcher
            guarantees; they decide how wide loads are.
        architectures: where the launcher uses it.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any] = field(default_factory=dict)
    options: dict[str, int] = field(default_factory=dict)
    aligned: tuple[str, ...] = ()
    architectures: tuple[int, ...] = (80, 90)

    @staticmethod
    def of_plan(
        name: str,
        kernel: Any,
        signature: dict[str, str],
        plan: dict[str, Any],
        aligned: tuple[str, ...] = (),
    ) -> Variant:
        """Return the variant of a launcher's ``plan``: constants in capitals, options not."""
        constants = {key: value for key, value in plan.items() if key.isupper()}
        options = {key: value for key, value in plan.items() if not key.isupper()}
        return Variant(name, kernel, signature, constants, options, aligned)
