"""Layers that train their weights as U Sigma Vh, and what changes a model to them and back."""

from python_api.decomposed.attention import DecomposedMultiheadAttention
from python_api.decomposed.compression import compress_model
from python_api.decomposed.conv import DecomposedConv1d, DecomposedConv2d, DecomposedConv3d
from python_api.decomposed.drift import Drift, Drifts, decomposition_drift
from python_api.decomposed.embedding import DecomposedEmbedding
from python_api.decomposed.groups import parameter_groups
from python_api.decomposed.layer import DecomposedLayer
from python_api.decomposed.linear import DecomposedLinear
from python_api.decomposed.model import decompose_model
from python_api.decomposed.ranks import Rank, resolve_rank
from python_api.decomposed.recomposition import recompose_model

__all__ = [
    "DecomposedConv1d",
    "DecomposedConv2d",
    "DecomposedConv3d",
    "DecomposedEmbedding",
    "DecomposedLayer",
    "DecomposedLinear",
    "DecomposedMultiheadAttention",
    "Drift",
    "Drifts",
    "Rank",
    "compress_model",
    "decompose_model",
    "decomposition_drift",
    "parameter_groups",
    "recompose_model",
    "resolve_rank",
]
