"""Pairs of known families, and guesses from names and order."""
