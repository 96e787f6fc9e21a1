"""Which matrices a model has."""
