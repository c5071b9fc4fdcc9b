"""What keeps a run alive: processes, signals, checkpoints, memory."""
