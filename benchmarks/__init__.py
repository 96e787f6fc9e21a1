"""Timings of the kernels beside their peers: same inputs, same run, errors beside every time."""
