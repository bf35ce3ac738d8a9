"""Authentication: API keys, bearer tokens, sign-in to the page."""
