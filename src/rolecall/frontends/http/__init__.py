"""The HTTP front end: the native API, the OpenAI-compatible one, the operators' one, and the web page."""
