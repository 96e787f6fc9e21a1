"""Plots of a run, and its report."""
