"""Markdown for Telegram: text and entities."""
