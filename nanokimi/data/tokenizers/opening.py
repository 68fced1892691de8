"""How a text that begins a document is encoded."""

from __future__ import annotations

from nanokimi.data.tokenizers.own import Tokenizer


def opening_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text that begins a document, with what stood before every document in training.

    A model that begins without end-of-text is in a state that it hardly ever saw. An empty text is the very
    beginning of a document; of a single text it has no ids. Raises UserError for a text that cannot be encoded.
    """
    ids: list[int] = tokenizer.encode(text).tolist()
    return ids if tokenizer.start_id is None else [tokenizer.start_id, *ids]
