"""What every operation runs on: schemas, the choice of a backend, numerics."""
