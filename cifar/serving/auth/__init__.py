"""Who may call: API keys, tokens, sign-in."""
