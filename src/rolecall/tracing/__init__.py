"""Traces by OpenTelemetry: one for each turn, across all processes. While off, nothing is imported or recorded."""
