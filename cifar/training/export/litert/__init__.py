"""The LiteRT file of a version: its content, and which of its layers compute in int8."""
