"""The front end in a terminal: ``rolecall chat``, the line one types in, and answers that grow above it."""
