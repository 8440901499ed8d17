"""TODO transcripts."""
