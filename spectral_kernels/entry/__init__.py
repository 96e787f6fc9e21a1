"""Every way in: arrays, checks, matrices given as factors."""
