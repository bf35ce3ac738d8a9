"""The server process: gunicorn's workers, lifespan, logging, metrics, Redis."""
