"""How the CUDA kernels of csrc/cuda get to a device: image, table, launch."""
