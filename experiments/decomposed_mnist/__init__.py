"""Handwritten digits with decomposed layers: what weight decay does to factors, and grokking."""
