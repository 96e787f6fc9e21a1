"""A map of a model that is traced: which weight feeds which."""
