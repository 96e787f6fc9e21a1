"""How singular vectors of different matrices line up."""
