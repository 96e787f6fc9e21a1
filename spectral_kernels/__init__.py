"""Spectra of every weight matrix at every training step.

``import spectral_kernels as sk`` is the only import a user needs. The functions on arrays are
loaded at once and need torch and NumPy alone; the training side (``SpectralMonitor`` and the
rest of ``spectral_monitor``) is loaded when it is first asked for.
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
from spectral_kernels.entry.results import SVD, Decomposed, SpectralSummary
from spectral_kernels.factored.op import break_even_rank, decompose, recompose, usv_matmul
from spectral_kernels.factored.spectra import usv_svd, usv_svdvals
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
from spectral_kernels.rsvd.op import rsvd
from spectral_kernels.svd.bounds import residual_bounds
from spectral_kernels.svd.op import svd, svdvals
from spectral_kernels.tracking.op import SpectrumTracker

if TYPE_CHECKING:
    from spectral_monitor.decomposed.convert.compression import compress_model
    from spectral_monitor.decomposed.convert.model import decompose_model
    from spectral_monitor.decomposed.convert.recomposition import recompose_model
    from spectral_monitor.decomposed.drift import decomposition_drift
    from spectral_monitor.decomposed.layers.attention import DecomposedMultiheadAttention
    from spectral_monitor.decomposed.layers.conv import (
        DecomposedConv1d,
        DecomposedConv2d,
        DecomposedConv3d,
    )
    from spectral_monitor.decomposed.layers.embedding import DecomposedEmbedding
    from spectral_monitor.decomposed.layers.layer import DecomposedLayer
    from spectral_monitor.decomposed.layers.linear import DecomposedLinear
    from spectral_monitor.decomposed.weight_decay import parameter_groups
    from spectral_monitor.monitor import SpectralMonitor
    from spectral_monitor.pairs.tracing.map import Trace
    from spectral_monitor.pairs.tracing.trace import trace
    from spectral_monitor.run.recorder import Recorder
    from spectral_monitor.step.frame import SpectralFrame

__version__ = "0.1.0"

# Name -> module of spectral_monitor that has it (PEP 562).
_TRAINING_SIDE = {
    "DecomposedConv1d": "spectral_monitor.decomposed.layers.conv",
    "DecomposedConv2d": "spectral_monitor.decomposed.layers.conv",
    "DecomposedConv3d": "spectral_monitor.decomposed.layers.conv",
    "DecomposedEmbedding": "spectral_monitor.decomposed.layers.embedding",
    "DecomposedLayer": "spectral_monitor.decomposed.layers.layer",
    "DecomposedLinear": "spectral_monitor.decomposed.layers.linear",
    "DecomposedMultiheadAttention": "spectral_monitor.decomposed.layers.attention",
    "Recorder": "spectral_monitor.run.recorder",
    "SpectralFrame": "spectral_monitor.step.frame",
    "SpectralMonitor": "spectral_monitor.monitor",
    "Trace": "spectral_monitor.pairs.tracing.map",
    "compress_model": "spectral_monitor.decomposed.convert.compression",
    "decompose_model": "spectral_monitor.decomposed.convert.model",
    "decomposition_drift": "spectral_monitor.decomposed.drift",
    "parameter_groups": "spectral_monitor.decomposed.weight_decay",
    "recompose_model": "spectral_monitor.decomposed.convert.recomposition",
    "trace": "spectral_monitor.pairs.tracing.trace",
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
