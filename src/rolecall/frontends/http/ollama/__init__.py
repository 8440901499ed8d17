"""Ollama's API, for clients that know only that."""
