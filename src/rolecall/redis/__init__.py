"""TODO redis."""
