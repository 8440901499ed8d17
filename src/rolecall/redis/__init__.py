"""Connections to the Redis or Valkey server, its keys and scripts, leader election, and the bundled server."""
