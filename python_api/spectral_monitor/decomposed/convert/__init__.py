"""From dense layers to decomposed ones, to lower ranks, and back."""
