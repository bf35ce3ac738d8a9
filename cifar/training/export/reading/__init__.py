"""Reads models from other authors: recognises the file, loads the model, and adapts its shapes."""
