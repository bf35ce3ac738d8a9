"""Middleware, in the order in which a request passes it."""
