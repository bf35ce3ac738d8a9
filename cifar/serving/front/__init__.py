"""Middleware, in the order in which a request passes it.

`request_id`, `observe`, `headers`, CORS (Starlette's), sessions and sign-in (`serving.auth`, only with sign-in),
`visitor`, `rate_limit`, `body_limit`. `rest.app.create_api` puts them together.
"""
