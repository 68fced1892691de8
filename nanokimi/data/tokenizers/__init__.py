"""Text to ids and back: `own` (characters, bytes, SentencePiece), `foreign` (other systems' files), `words`."""
