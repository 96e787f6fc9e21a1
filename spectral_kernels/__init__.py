"""Spectra of every weight matrix at every training step.

``import spectral_kernels as sk`` is the only import a user needs. The functions on arrays are
loaded at once and need torch and NumPy alone; the training side (``SpectralMonitor``, recorded
runs, their plots and reports) is loaded name by name when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from spectral_kernels.alignment.chance import (
    chance_agreement,
    chance_alignment,
    chance_overlap,
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
from spectral_kernels.rank.bounds import bounds_from_leading_values
from spectral_kernels.rank.op import (
    effective_rank,
    feature_rank,
    numerical_rank,
    spectral_summary,
    stable_rank,
    summarize_singular_values,
)
from spectral_kernels.rank.summary_bounds import bounds_from_value_bounds
from spectral_kernels.rsvd.op import rsvd
from spectral_kernels.svd.bounds import bounds_from_residuals
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
    from spectral_monitor.figures.line_plots import (
        plot_agreement_scores,
        plot_alignment_scores,
        plot_bounds,
        plot_certainty,
        plot_metric,
        plot_overlaps,
        plot_scores,
        plot_work,
    )
    from spectral_monitor.figures.overviews import (
        plot_agreements,
        plot_clusters,
        plot_run,
        plot_runs,
    )
    from spectral_monitor.figures.plots import (
        plot_agreement,
        plot_alignment,
        plot_effective_rank,
        plot_errors,
        plot_identifiable,
        plot_singular_values,
    )
    from spectral_monitor.figures.report import write_report
    from spectral_monitor.model.matrix import MatrixView
    from spectral_monitor.model.registry import MatrixRegistry, ParameterInfo, Skip
    from spectral_monitor.model.rules import default_registry
    from spectral_monitor.monitor import SpectralMonitor
    from spectral_monitor.pairs.tracing.map import Trace
    from spectral_monitor.pairs.tracing.trace import trace
    from spectral_monitor.run.final_agreement import agreement_with_final
    from spectral_monitor.run.reader import Run, load_run
    from spectral_monitor.run.recorder import Recorder
    from spectral_monitor.run.sinks import LoggerSink
    from spectral_monitor.step.frame import MatrixRow, SpectralFrame

__version__ = "0.1.0"

# Module of spectral_monitor -> names that it has. Loaded when one is asked for (PEP 562), and with
# it whatever it needs: matplotlib for plots, plotly and Jinja for reports.
_TRAINING_SIDE = {
    "decomposed.convert.compression": ("compress_model",),
    "decomposed.convert.model": ("decompose_model",),
    "decomposed.convert.recomposition": ("recompose_model",),
    "decomposed.drift": ("decomposition_drift",),
    "decomposed.layers.attention": ("DecomposedMultiheadAttention",),
    "decomposed.layers.conv": ("DecomposedConv1d", "DecomposedConv2d", "DecomposedConv3d"),
    "decomposed.layers.embedding": ("DecomposedEmbedding",),
    "decomposed.layers.layer": ("DecomposedLayer",),
    "decomposed.layers.linear": ("DecomposedLinear",),
    "decomposed.weight_decay": ("parameter_groups",),
    "figures.line_plots": (
        "plot_agreement_scores",
        "plot_alignment_scores",
        "plot_bounds",
        "plot_certainty",
        "plot_metric",
        "plot_overlaps",
        "plot_scores",
        "plot_work",
    ),
    "figures.overviews": ("plot_agreements", "plot_clusters", "plot_run", "plot_runs"),
    "figures.plots": (
        "plot_agreement",
        "plot_alignment",
        "plot_effective_rank",
        "plot_errors",
        "plot_identifiable",
        "plot_singular_values",
    ),
    "figures.report": ("write_report",),
    "model.registry": ("MatrixRegistry", "ParameterInfo", "Skip"),
    "model.matrix": ("MatrixView",),
    "model.rules": ("default_registry",),
    "monitor": ("SpectralMonitor",),
    "pairs.tracing.map": ("Trace",),
    "pairs.tracing.trace": ("trace",),
    "run.final_agreement": ("agreement_with_final",),
    "run.reader": ("Run", "load_run"),
    "run.recorder": ("Recorder",),
    "run.sinks": ("LoggerSink",),
    "step.frame": ("MatrixRow", "SpectralFrame"),
}
_MODULES = {
    name: f"spectral_monitor.{module}" for module, names in _TRAINING_SIDE.items() for name in names
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
    "LoggerSink",
    "MatrixRegistry",
    "MatrixRow",
    "MatrixView",
    "ParameterInfo",
    "Recorder",
    "Run",
    "Skip",
    "SpectralFrame",
    "SpectralMonitor",
    "SpectralSummary",
    "SpectrumTracker",
    "Trace",
    "agreement_with_final",
    "alignment_diagonal",
    "alignment_matrix",
    "alignment_score",
    "bounds_from_leading_values",
    "bounds_from_residuals",
    "bounds_from_value_bounds",
    "break_even_rank",
    "capabilities",
    "chance_agreement",
    "chance_alignment",
    "chance_overlap",
    "compress_model",
    "decompose",
    "decompose_model",
    "decomposition_drift",
    "default_registry",
    "effective_rank",
    "feature_rank",
    "identifiable_vectors",
    "load_run",
    "numerical_rank",
    "parameter_groups",
    "plot_agreement",
    "plot_agreement_scores",
    "plot_agreements",
    "plot_alignment",
    "plot_alignment_scores",
    "plot_bounds",
    "plot_certainty",
    "plot_clusters",
    "plot_effective_rank",
    "plot_errors",
    "plot_identifiable",
    "plot_metric",
    "plot_overlaps",
    "plot_run",
    "plot_runs",
    "plot_scores",
    "plot_singular_values",
    "plot_work",
    "recompose",
    "recompose_model",
    "rsvd",
    "singular_value_clusters",
    "singular_vector_agreement",
    "spectral_summary",
    "stable_rank",
    "subspace_agreement",
    "subspace_overlap",
    "summarize_singular_values",
    "svd",
    "svdvals",
    "trace",
    "usv_matmul",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
