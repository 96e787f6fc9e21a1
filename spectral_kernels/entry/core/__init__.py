"""Small matrices with the singular values of U Sigma Vh."""

from spectral_kernels.entry.core.op import Core, cores, lift

__all__ = ["Core", "cores", "lift"]
