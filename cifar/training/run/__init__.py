"""One training run, from its folder to its finished model."""
