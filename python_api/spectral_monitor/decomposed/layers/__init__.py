"""Decomposed forms of torch's layers."""
