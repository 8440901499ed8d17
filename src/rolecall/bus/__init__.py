"""The message bus: one module for each noun, one function for each verb, with the Bus as its first argument."""
