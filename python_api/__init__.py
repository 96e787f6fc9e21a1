"""The training side: a monitor of weight spectra, what it records, and pictures of it.

Reached as ``spectral_kernels.SpectralMonitor`` and so on; plots and reports, which need further
packages, are modules of their own: `python_api.plots`, `python_api.report`.
"""

from python_api.frame import MatrixRow, SpectralFrame
from python_api.loggers import LoggerSink
from python_api.matrices import MatrixRegistry, MatrixView, ParameterInfo, Skip
from python_api.matrix_rules import default_registry
from python_api.monitor import SpectralMonitor
from python_api.recorder import Recorder
from python_api.run import Run, load_run

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
