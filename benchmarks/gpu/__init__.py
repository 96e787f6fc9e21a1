"""Benchmarks on a GPU: ours, peers and floors, timed with CUDA events and a cold L2 cache."""
