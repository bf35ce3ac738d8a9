"""One file for each change of the tables. Each file names its predecessor."""
