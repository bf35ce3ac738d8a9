"""From an uploaded file to an answer."""
