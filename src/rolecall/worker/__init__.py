"""TODO worker."""
