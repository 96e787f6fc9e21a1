"""A step that is left to a GPU: streams, graphs, what comes back."""
