"""The training side: a monitor of weight spectra, what it records, and pictures of it.

Public names are those of ``spectral_kernels``, which loads them from the modules of this package
when they are asked for.
"""
