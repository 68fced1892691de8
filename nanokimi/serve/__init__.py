"""`nanokimi serve`: an OpenAI-compatible completions endpoint, and the thread that writes for it."""
