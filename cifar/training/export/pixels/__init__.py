"""Find out which pixel values a model expects: derived from its layers, measured on labelled pictures, or asked; never guessed."""
