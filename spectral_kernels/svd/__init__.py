"""Singular value decompositions of many matrices."""
