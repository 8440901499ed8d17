"""The Telegram front end: updates become turns, and answers replace their placeholders."""
