"""The front end in Telegram: updates become turns, answers take the place of the messages that promised them."""
