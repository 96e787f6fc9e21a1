"""Decomposed learning of a character language model (appendix G.1 of the paper)."""
