"""Schedules: turns that begin by themselves."""
