"""Real images, from files to batches."""
