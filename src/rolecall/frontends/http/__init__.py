"""The HTTP front end: the native API, the OpenAI-compatible API, the API for operators, and the web page."""
