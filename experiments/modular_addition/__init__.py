"""Modular addition, (i + j) mod p: the one-layer Transformer that groks (Nanda et al. 2023)."""
