"""What agents are written with: the base class, the context of a handler, memory, prompts, tools and policies."""
