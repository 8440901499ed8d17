"""Conversation logs: their format, the scribe that writes them, and everything that reads them."""
