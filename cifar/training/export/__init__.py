"""From a trained model to an exported version."""
