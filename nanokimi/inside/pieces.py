"""Tokens as people read them: white space and control characters made visible, and tokens that split a character.

A byte-level tokenizer writes most characters of the world in several tokens, and the character tokenizer escapes those
that it does not know. Such tokens are shown as one group: the first stands for the character, the others for its parts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from nanokimi.data.tokenizers.own import ByteTokenizer, CharTokenizer, SentencePieceTokenizer, Tokenizer

UNFINISHED = "\ufffd"
"""What a tokenizer decodes a part of a character to."""
LONGEST_GROUP = 24
"""Tokens of one character, at most: an escape among two known characters needs 22."""
CONTEXT = 4
"""Characters or words before a token, which decide whether it begins with a space in some SentencePiece models."""
SPACE, LINE_END, TAB, DOTTED_CIRCLE = "\u2423", "\u21b5", "\u21e5", "\u25cc"


class Piece(NamedTuple):
    """What one token adds to a text."""

    text: str
    """The characters that begin with this token; "" for a later part of a character."""
    label: str
    """The same, all visible, for lists."""
    part: int = 1
    """Which part of its character it is, counted from 1."""
    parts: int = 1


def visible(text: str, *, spaces: bool = True) -> str:
    """A text in which every character can be seen, and none can hide or move others.

    Without `spaces`, spaces stay, and a line end stays behind its sign.
    """
    shown = "".join(_visible(character) for character in text)
    if not spaces:
        return shown.replace(LINE_END, LINE_END + "\n") if "\n" in text else shown
    return shown.replace(" ", SPACE)


def _visible(character: str) -> str:
    if character == "\n":
        return LINE_END
    if character == "\t":
        return TAB
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's pictures of control characters
    if character == " " or character.isprintable():
        return DOTTED_CIRCLE + character if unicodedata.combining(character) else character
    return f"<U+{code:04X}>"


class Pieces:
    """The pieces of one tokenizer's tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.inner: Tokenizer = getattr(tokenizer, "inner", tokenizer)
        self.anchor = [int(token) for token in tokenizer.encode("a")]
        self._labels: dict[int, str] = {}

    def label(self, token: int) -> str:
        """One token by itself: its text, all visible, or what part of a character it is."""
        if token not in self._labels:
            self._labels[token] = self._label(token)
        return self._labels[token]

    def _label(self, token: int) -> str:
        if not 0 <= token < self.tokenizer.vocab_size:
            return f"<id {token}>"  # a model may have more logits than there are tokens
        text = self._added(self.anchor, [token])
        if text and UNFINISHED not in text:
            return visible(text)
        if isinstance(self.inner, ByteTokenizer):
            return f"<{token:02X}>"
        if isinstance(self.inner, SentencePieceTokenizer) and token < len(self.inner.bytes_of_id) - 1:
            data = self.inner.bytes_of_id[token]
            return "".join(f"<{byte:02X}>" for byte in data) or f"<id {token}>"
        if isinstance(self.inner, CharTokenizer) and token == self.inner.escape_id:
            return "<escape>"
        return f"<id {token}>"

    def _added(self, before: Sequence[int], tokens: Sequence[int]) -> str:
        """The text that tokens add after others."""
        earlier, whole = self.tokenizer.decode(before), self.tokenizer.decode([*before, *tokens])
        return whole[len(earlier) :] if whole.startswith(earlier) else self.tokenizer.decode(tokens)

    def of(self, ids: Sequence[int]) -> list[Piece]:
        """The piece of each token of a text."""
        found: list[Piece] = []
        begins: list[int] = []  # of characters: text that starts within one decodes to something else
        while (start := len(found)) < len(ids):
            before = ids[begins[-CONTEXT] if len(begins) >= CONTEXT else 0 : start]
            begins.append(start)
            for stop in range(start + 1, min(start + LONGEST_GROUP, len(ids)) + 1):
                text = self._added(before, ids[start:stop])
                if not text.endswith(UNFINISHED):
                    break
            if UNFINISHED in text:  # these tokens are no character: each for itself
                found += [self._alone(token) for token in ids[start:stop]]
                continue
            parts = stop - start
            found.append(Piece(text, visible(text) or self.label(ids[start]), 1, parts))
            found += [Piece("", self.label(ids[start + i]), i + 1, parts) for i in range(1, parts)]
        return found

    def _alone(self, token: int) -> Piece:
        text = self._added(self.anchor, [token])
        return Piece(self.label(token) if UNFINISHED in text or not text else text, self.label(token))
