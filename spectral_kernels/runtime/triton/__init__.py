"""What the launches of Triton kernels share."""
