"""Layers that train their weights as U Sigma Vh, and what changes a model to them and back."""

from spectral_monitor.decomposed.convert.compression import compress_model
from spectral_monitor.decomposed.convert.model import decompose_model
from spectral_monitor.decomposed.convert.recomposition import recompose_model
from spectral_monitor.decomposed.drift import Drift, Drifts, decomposition_drift
from spectral_monitor.decomposed.layers.attention import DecomposedMultiheadAttention
from spectral_monitor.decomposed.layers.conv import (
    DecomposedConv1d,
    DecomposedConv2d,
    DecomposedConv3d,
)
from spectral_monitor.decomposed.layers.embedding import DecomposedEmbedding
from spectral_monitor.decomposed.layers.layer import DecomposedLayer
from spectral_monitor.decomposed.layers.linear import DecomposedLinear
from spectral_monitor.decomposed.layers.ranks import Rank, resolve_rank
from spectral_monitor.decomposed.weight_decay import parameter_groups

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
