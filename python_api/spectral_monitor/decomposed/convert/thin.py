"""Two thin layers in place of one whose rank is low: Vh, then U Sigma."""

from __future__ import annotations

from collections.abc import Sequence

from spectral_monitor.decomposed.convert.kinds import move_parameters
from torch import Tensor, nn


class ThinLayers(nn.Sequential):
    """Two layers that compute what one computed, and say its weight and bias where asked.

    The first is Vh and the second U Sigma; of an embedding the first is the table U Sigma.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__(first, second)

    @property
    def weight(self) -> Tensor:
        """The product as a matrix or kernel, formed anew each time; differentiable.

        For code that asks a layer for its weight, as ``nn.TransformerEncoderLayer`` does.
        """
        first, second = (layer.get_parameter("weight") for layer in self)
        if isinstance(self[0], nn.Embedding):
            return first @ (second if isinstance(self[1], Transposed) else second.mT)
        groups = getattr(self[1], "groups", 1)
        left = second.reshape(groups, second.shape[0] // groups, -1)
        return (left @ first.reshape(groups, left.shape[-1], -1)).reshape(-1, *first.shape[1:])

    @property
    def bias(self) -> Tensor | None:
        """The bias of the second layer."""
        bias: Tensor | None = getattr(self[1], "bias", None)
        return bias


class Transposed(nn.Module):
    """y = x W for a weight W (k, n), which ``nn.Linear(k, n)`` would have transposed.

    An output layer tied to an embedding has Vh as ``nn.Linear(n, k)``; the embedding's second
    layer wants the same parameter the other way round.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """Return x W: (..., k) to (..., n)."""
        return x @ self.weight

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"in_features={self.weight.shape[0]}, out_features={self.weight.shape[1]}"


def thinned(module: nn.Module) -> nn.Module:
    """The result of ``DecomposedLayer.smallest``, as `ThinLayers` where it is two layers."""
    if not isinstance(module, nn.Sequential):
        return module
    return ThinLayers(module[0], module[1]).train(module.training)


def share_weights(places: Sequence[tuple[nn.Module, str]]) -> None:
    """Give plain modules that were made from one set of factors the weights of the first.

    Args:
        places: each module with the path of its weight; `ThinLayers` share both of theirs.
    """
    # An embedding has its second weight transposed, so that it takes over that of another layer.
    (first, path), *others = sorted(places, key=lambda place: _is_table(place[0]))
    for other, own in others:
        if not isinstance(first, ThinLayers) or not isinstance(other, ThinLayers):
            move_parameters(first, other, {path: own})
        elif _is_table(first) == _is_table(other):
            move_parameters(first, other, {"0.weight": "0.weight", "1.weight": "1.weight"})
        else:
            other[1] = Transposed(first.get_parameter("0.weight")).train(other.training)
            move_parameters(first, other, {"1.weight": "0.weight"})


def _is_table(module: nn.Module) -> bool:
    return isinstance(module, ThinLayers) and isinstance(module[0], nn.Embedding)
