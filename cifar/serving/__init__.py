"""Serves the exported versions: HTTP API and page."""
