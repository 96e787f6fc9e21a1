"""Layers that train their weights as U Sigma Vh, and what changes a model to them."""

from python_api.decomposed.embedding import DecomposedEmbedding
from python_api.decomposed.layer import DecomposedLayer
from python_api.decomposed.linear import DecomposedLinear
from python_api.decomposed.model import decompose_model
from python_api.decomposed.ranks import Rank, resolve_rank

__all__ = [
    "DecomposedEmbedding",
    "DecomposedLayer",
    "DecomposedLinear",
    "Rank",
    "decompose_model",
    "resolve_rank",
]
