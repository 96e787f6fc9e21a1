"""Decomposed learning of a Vision Transformer (appendix G.2 of the paper)."""
