"""What every experiment needs besides PyTorch: options, run folders, resume, claims, tables.

Small functions that a training script calls; there is no trainer class and nothing is called back.
"""
