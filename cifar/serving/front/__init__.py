"""Middleware, in the order in which a request passes it.

`observe` (with `headers`), `last_resort`, `head`, `cross_origin`, sessions and sign-in (`serving.auth`, only
with sign-in), `visitor`, `rate_limit` (only with a limit), `body_limit`. `rest.app.create_api` puts them together.
"""
