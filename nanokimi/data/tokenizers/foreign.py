"""Tokenizers made elsewhere: any tokenizer.json (of the library `tokenizers`) and any SentencePiece model.

They are used as they are. Many normalise text, so that decoding does not restore it; how many texts of the data that
affects is counted while encoding. decode never fails: an id outside the vocabulary becomes U+FFFD.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from nanokimi.data.documents import END_OF_TEXT
from nanokimi.data.packed import import_optional
from nanokimi.errors import UserError
from nanokimi.runtime.files import parse_json, read_bytes
from nanokimi.runtime.text import one_line

MIN_PIECES, MAX_PIECES = 2, 1 << 18


class _Foreign:
    """What both have in common: the content of their file, and decoding by runs of known ids."""

    name: str
    file: ClassVar[str]

    def __init__(self, content: bytes, vocab_size: int, end_of_text_id: int | None) -> None:
        self.content = content
        self.vocab_size = vocab_size
        self.end_of_text_id = end_of_text_id
        self.start_id: int | None = None

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of any ids."""
        known = itertools.groupby(np.asarray(ids, dtype=np.int64).tolist(), self._knows)
        return "".join(self._decode(list(run)) if ok else "\ufffd" * len(list(run)) for ok, run in known)

    def _knows(self, token: int) -> bool:
        return 0 <= token < self.vocab_size

    def _checked(self, ids: list[int]) -> np.ndarray:
        """Ids as an array. Raises UserError for an id outside the vocabulary."""
        array = np.array(ids, dtype=np.int64)
        if len(array) and not 0 <= int(array.min()) <= int(array.max()) < self.vocab_size:
            raise UserError(
                f"the {self.name} tokenizer gives ids beyond its {self.vocab_size} pieces: use another"
            )
        return array.astype(np.int32)

    def _decode(self, ids: list[int]) -> str:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, which says what this is, and the file itself beside it."""
        stored = json.dumps({"schema_version": 1, "type": self.name}, indent=2) + "\n"
        (Path(folder) / "tokenizer.json").write_text(stored, encoding="utf-8")
        (Path(folder) / self.file).write_bytes(self.content)


class TokenizersTokenizer(_Foreign):
    """A tokenizer.json. Special tokens that occur in the text are encoded as ordinary text."""

    name = "tokenizer.json"
    file = "tokenizer.foreign.json"

    def __init__(self, content: bytes) -> None:
        library = import_optional("tokenizers", "a tokenizer.json")
        with _failures_as(ValueError, "it is none"):
            self.tokenizer = library.Tokenizer.from_str(content.decode("utf-8"))
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        ids = self.tokenizer.get_vocab(with_added_tokens=True).values()
        super().__init__(content, max(ids, default=-1) + 1, self.tokenizer.token_to_id(END_OF_TEXT))

    def encode(self, text: str) -> np.ndarray:
        """Return the ids, without the tokens that a template would add."""
        _refuse_surrogates(text)
        try:
            with _failures_as(UserError, "the tokenizer.json cannot encode the text"):
                ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        except UserError:
            known = self.tokenizer.get_vocab(with_added_tokens=True)
            unknown = next((one for one in text if one not in known), None)
            if unknown is None or any(len(piece) > 1 for piece in known):
                raise
            raise UserError(
                f"the text holds {ascii(unknown)}, which is none of the tokenizer's {len(known)} characters"
            ) from None
        return self._checked(ids)

    def _decode(self, ids: list[int]) -> str:
        with _failures_as(UserError, "the tokenizer.json cannot decode its own ids"):
            text: str = self.tokenizer.decode(ids, skip_special_tokens=False)
        return text


class SentencePieceModel(_Foreign):
    """A SentencePiece model with the normalisation that it was trained with."""

    name = "sentencepiece"
    file = "tokenizer.model"

    def __init__(self, content: bytes) -> None:
        import sentencepiece

        if not content:
            raise ValueError("it is empty")  # SentencePiece would accept it and only log complaints
        self.processor: Any = sentencepiece.SentencePieceProcessor(model_proto=content)
        super().__init__(content, self.processor.vocab_size(), None)

    def encode(self, text: str) -> np.ndarray:
        """Return the ids, without begin and end of sentence."""
        _refuse_surrogates(text)
        with _failures_as(UserError, "the SentencePiece model cannot encode the text"):
            ids = self.processor.encode(text, add_bos=False, add_eos=False)
        return self._checked(ids)

    def _decode(self, ids: list[int]) -> str:
        with _failures_as(UserError, "the SentencePiece model cannot decode its own ids"):
            text: str = self.processor.decode(ids)
        return text


FOREIGN: dict[str, type[TokenizersTokenizer] | type[SentencePieceModel]] = {
    TokenizersTokenizer.name: TokenizersTokenizer,
    SentencePieceModel.name: SentencePieceModel,
}


def is_foreign(tokenizer: str) -> bool:
    """Whether a `dataset.tokenizer` is a path to one of these."""
    return tokenizer.endswith((".json", ".model"))


def is_own_file(path: Path) -> bool:
    """Whether a file is the tokenizer.json of prepared data, which says what kind it is, and not a library's."""
    try:
        stored = parse_json(read_bytes(path)) if path.name == "tokenizer.json" else None
    except (OSError, ValueError):
        return False
    return isinstance(stored, dict) and "schema_version" in stored and "type" in stored


def own_files(path: Path) -> list[Path]:
    """The files of the tokenizer that `dataset.tokenizer` names: that of prepared data may have one beside it."""
    beside = [path.parent / kind.file for kind in FOREIGN.values()] if is_own_file(path) else []
    return [path, *(file for file in beside if file.is_file())]


def read_foreign(path: Path) -> TokenizersTokenizer | SentencePieceModel:
    """Read a tokenizer from a file. Raises UserError if it is not one, or has an unreasonable size."""
    try:
        content = read_bytes(path)
    except OSError as error:
        raise UserError(
            f"dataset.tokenizer {path} cannot be read ({error.strerror}): check the path"
        ) from None
    try:
        kind = TokenizersTokenizer if path.name.endswith(".json") else SentencePieceModel
        tokenizer = kind(content)
    except (ValueError, RuntimeError) as error:
        what = "tokenizer.json" if path.name.endswith(".json") else "SentencePiece model"
        raise UserError(f"dataset.tokenizer {path} is not a {what} ({one_line(error)[:200]})") from None
    try:
        require_size(tokenizer)
    except ValueError as error:
        raise UserError(f"dataset.tokenizer {path} {error}") from None
    return tokenizer


def require_size(tokenizer: TokenizersTokenizer | SentencePieceModel) -> None:
    """Raise ValueError for an unreasonable number of pieces."""
    if not MIN_PIECES <= tokenizer.vocab_size <= MAX_PIECES:
        raise ValueError(f"has {tokenizer.vocab_size} pieces: expected {MIN_PIECES} to {MAX_PIECES}")


@contextmanager
def _failures_as(kind: type[ValueError], what: str) -> Iterator[None]:
    """Turn any exception of a library into one line: `tokenizers` raises plain Exception, and Rust panics."""
    try:
        yield
    except (UserError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise kind(f"{what} ({one_line(error)[:200]})") from None


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text holds half a character (lone surrogate {ord(text[error.start]):#06x}) at position "
            f"{error.start}: remove it"
        ) from None
