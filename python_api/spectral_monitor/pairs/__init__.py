"""Which layers feed which."""
