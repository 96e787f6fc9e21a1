"""The leading triplets of matrices that change a little from step to step."""
