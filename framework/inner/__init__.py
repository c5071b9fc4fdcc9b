"""A training step and its derivatives."""
