"""Training: load a data set, train a network on it, export the result as a version, and measure that version."""
