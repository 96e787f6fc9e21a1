"""Ranks and norms from singular values."""
