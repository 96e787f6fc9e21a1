"""All singular values of a matrix from its last vectors."""
