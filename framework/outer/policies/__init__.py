"""Truncation policies: where the differentiated window lies and how long it is."""
