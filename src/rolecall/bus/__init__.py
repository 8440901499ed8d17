"""TODO bus."""
