"""Authentication: API keys, bearer tokens, and sign-in to the page."""
