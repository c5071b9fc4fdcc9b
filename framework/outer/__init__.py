"""What is learnt, and how its gradient is had."""
