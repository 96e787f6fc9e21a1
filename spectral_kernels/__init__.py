"""Spectra of every weight matrix at every training step.

``import spectral_kernels as sk`` is the only import a user needs. The functions on arrays are
loaded at once and need torch and NumPy alone; the training side (``SpectralMonitor`` and the
rest of ``python_api``) is loaded when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from spectral_kernels.alignment.baselines import (
    expected_agreement,
    expected_alignment,
    expected_overlap,
)
from spectral_kernels.alignment.clusters import (
    identifiable_vectors,
    singular_value_clusters,
    subspace_agreement,
)
from spectral_kernels.alignment.op import (
    alignment_diagonal,
    alignment_matrix,
    alignment_score,
    singular_vector_agreement,
    subspace_overlap,
)
from spectral_kernels.capabilities import capabilities
from spectral_kernels.decomposed.op import break_even_rank, decompose, recompose, usv_matmul
from spectral_kernels.decomposed.spectra import usv_svd, usv_svdvals
from spectral_kernels.rank.bounds import effective_rank_bounds
from spectral_kernels.rank.op import (
    effective_rank,
    feature_rank,
    numerical_rank,
    spectral_summary,
    stable_rank,
    summarize_singular_values,
)
from spectral_kernels.rank.summary_bounds import summary_bounds
from spectral_kernels.results import SVD, Decomposed, SpectralSummary
from spectral_kernels.rsvd.op import rsvd
from spectral_kernels.svd.bounds import residual_bounds
from spectral_kernels.svd.op import svd, svdvals
from spectral_kernels.tracking.op import SpectrumTracker

if TYPE_CHECKING:
    from python_api.decomposed.attention import DecomposedMultiheadAttention
    from python_api.decomposed.compression import compress_model
    from python_api.decomposed.conv import DecomposedConv1d, DecomposedConv2d, DecomposedConv3d
    from python_api.decomposed.drift import decomposition_drift
    from python_api.decomposed.embedding import DecomposedEmbedding
    from python_api.decomposed.groups import parameter_groups
    from python_api.decomposed.layer import DecomposedLayer
    from python_api.decomposed.linear import DecomposedLinear
    from python_api.decomposed.model import decompose_model
    from python_api.decomposed.recomposition import recompose_model
    from python_api.frame import SpectralFrame
    from python_api.monitor import SpectralMonitor
    from python_api.recorder import Recorder
    from python_api.tracing.map import Trace
    from python_api.tracing.trace import trace

__version__ = "0.1.0"

# Name -> module of python_api that has it (PEP 562).
_TRAINING_SIDE = {
    "DecomposedConv1d": "python_api.decomposed.conv",
    "DecomposedConv2d": "python_api.decomposed.conv",
    "DecomposedConv3d": "python_api.decomposed.conv",
    "DecomposedEmbedding": "python_api.decomposed.embedding",
    "DecomposedLayer": "python_api.decomposed.layer",
    "DecomposedLinear": "python_api.decomposed.linear",
    "DecomposedMultiheadAttention": "python_api.decomposed.attention",
    "Recorder": "python_api.recorder",
    "SpectralFrame": "python_api.frame",
    "SpectralMonitor": "python_api.monitor",
    "Trace": "python_api.tracing.map",
    "compress_model": "python_api.decomposed.compression",
    "decompose_model": "python_api.decomposed.model",
    "decomposition_drift": "python_api.decomposed.drift",
    "parameter_groups": "python_api.decomposed.groups",
    "recompose_model": "python_api.decomposed.recomposition",
    "trace": "python_api.tracing.trace",
}

__all__ = [
    "SVD",
    "Decomposed",
    "DecomposedConv1d",
    "DecomposedConv2d",
    "DecomposedConv3d",
    "DecomposedEmbedding",
    "DecomposedLayer",
    "DecomposedLinear",
    "DecomposedMultiheadAttention",
    "Recorder",
    "SpectralFrame",
    "SpectralMonitor",
    "SpectralSummary",
    "SpectrumTracker",
    "Trace",
    "alignment_diagonal",
    "alignment_matrix",
    "alignment_score",
    "break_even_rank",
    "capabilities",
    "compress_model",
    "decompose",
    "decompose_model",
    "decomposition_drift",
    "effective_rank",
    "effective_rank_bounds",
    "expected_agreement",
    "expected_alignment",
    "expected_overlap",
    "feature_rank",
    "identifiable_vectors",
    "numerical_rank",
    "parameter_groups",
    "recompose",
    "recompose_model",
    "residual_bounds",
    "rsvd",
    "singular_value_clusters",
    "singular_vector_agreement",
    "spectral_summary",
    "stable_rank",
    "subspace_agreement",
    "subspace_overlap",
    "summarize_singular_values",
    "summary_bounds",
    "svd",
    "svdvals",
    "trace",
    "usv_matmul",
    "usv_svd",
    "usv_svdvals",
]


def __getattr__(name: str) -> Any:
    if name in _TRAINING_SIDE:
        value = getattr(importlib.import_module(_TRAINING_SIDE[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
