"""`nanokimi judge`: another model rates stories, blind, and statistics say what its ratings are worth."""
