"""Network architectures, their optimizer and training recipes, and special layers."""
