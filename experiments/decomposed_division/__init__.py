"""Division modulo p with decomposed layers: grokking late, early, or not at all."""
