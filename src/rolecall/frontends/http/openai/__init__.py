"""OpenAI's API: what its clients ask for, answered by the application's roles and models."""
