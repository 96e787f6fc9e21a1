"""Small matrices with the singular values of U Sigma Vh."""
