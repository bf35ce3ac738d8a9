"""Analysis of the recorded predictions: A/B tests between versions, and drift of the images and answers of one version."""
