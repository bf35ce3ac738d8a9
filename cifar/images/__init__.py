"""Image files: screening and decoding."""
