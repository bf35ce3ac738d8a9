"""From data to a version: read a data set, build a network, train it, export it, measure it."""
