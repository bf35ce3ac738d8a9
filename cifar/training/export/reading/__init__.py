"""Read a model that somebody else made: recognise its file, load it, and adapt its shapes."""
