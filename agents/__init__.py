"""This application's agents: one role each."""
