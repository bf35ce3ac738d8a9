"""From a version to answers: the page, the HTTP API, and what stands between them and the model."""
