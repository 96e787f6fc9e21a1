"""Symmetric products."""
