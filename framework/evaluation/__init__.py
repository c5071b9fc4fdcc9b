"""Fresh networks trained on a set, and their scores."""
