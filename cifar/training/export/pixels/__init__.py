"""Finds out which pixel values a model expects: from its layers, from labelled pictures, or by asking the user. Nothing is guessed."""
