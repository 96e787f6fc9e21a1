"""Leading singular triplets by randomized subspace iteration."""
