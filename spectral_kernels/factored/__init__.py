"""Matrices kept as U Sigma Vh."""
