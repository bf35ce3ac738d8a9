"""The server process: lifespan, logging, metrics, outside services."""
