"""The processes at work: their registry, and what they log."""
