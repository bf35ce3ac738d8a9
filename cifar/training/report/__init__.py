"""Evaluation reports and the model card."""
