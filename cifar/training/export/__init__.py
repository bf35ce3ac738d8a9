"""Export a Keras model as a version of the registry."""
