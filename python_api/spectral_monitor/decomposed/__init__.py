"""Layers that train their weights as U Sigma Vh, and what changes a model to them and back."""
