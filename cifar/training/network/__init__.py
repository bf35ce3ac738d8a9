"""Networks and what they are built from."""
