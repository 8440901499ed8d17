"""The web page: chat, conversations, what is happening now, dead letters."""
