"""Every flag, once: its name, default, help, range and who reads it. One file a verb."""
