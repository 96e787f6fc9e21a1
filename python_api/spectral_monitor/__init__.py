"""The training side: a monitor of weight spectra, what it records, and pictures of it.

Reached as ``spectral_kernels.SpectralMonitor`` and so on; plots and reports, which need further
packages, are modules of their own: `figures.plots`, `figures.report`.
"""

from spectral_monitor.model.registry import MatrixRegistry, MatrixView, ParameterInfo, Skip
from spectral_monitor.model.rules import default_registry
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.run.reader import Run, load_run
from spectral_monitor.run.recorder import Recorder
from spectral_monitor.run.sinks import LoggerSink
from spectral_monitor.step.frame import MatrixRow, SpectralFrame

__all__ = [
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
    "default_registry",
    "load_run",
]
