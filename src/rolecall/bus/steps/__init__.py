"""Durable steps: what a handler has finished is recorded and not done again."""
