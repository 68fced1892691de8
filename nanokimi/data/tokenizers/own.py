"""Text to token ids and back: characters, bytes, or SentencePiece pieces (bpe, unigram), all without loss.

Tokenizers made elsewhere are in `foreign`. Documents are separated by one more id, end-of-text.

decode(encode(text)) is `text` for every Unicode string, including characters that the training text never had,
so that a score per byte or character covers the whole text. decode never fails: ids that no text encodes to (half a
character, an id beyond the vocabulary) become U+FFFD.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nanokimi.config import DatasetConfig
from nanokimi.data.documents import END_OF_TEXT
from nanokimi.data.tokenizers.foreign import FOREIGN, is_foreign, is_own_file, read_foreign, require_size
from nanokimi.data.tokenizers.sentencepiece_file import training_problem, with_exact_scores
from nanokimi.data.tokenizers.words import SPACE_MARK, WordMemo, words_are_independent
from nanokimi.errors import UserError
from nanokimi.runtime.files import parse_json, read_bytes

SCHEMA_VERSION = 1
TOKENIZER_FILE = "tokenizer.json"
MODEL_FILE = "tokenizer.model"

REPLACEMENT = 0xFFFD
LAST_CODE_POINT = 0x10FFFF
BROKEN_BYTE = 0xFF
"""A byte that UTF-8 never contains: it replaces an id beyond the vocabulary and decodes to U+FFFD."""

SEPARATING = f"\n\0{SPACE_MARK}"
"""Never given to SentencePiece but encoded as bytes: the ends of lines and C strings, and its mark of a space, which
would be decoded as a space."""
SEPARATORS = re.compile(f"([{SEPARATING}])")
MAX_SENTENCE_CHARS = 1000
"""SentencePiece silently drops training sentences above 4192 bytes; longer lines are cut to this."""
MAX_TRAINING_CHARS = 20_000_000
"""A SentencePiece model is trained on about this much text, spread evenly over the whole (not tuned)."""
MAX_CHARS_AT_ONCE = 1 << 20
"""Characters that the character tokenizer encodes at a time: an unknown one needs a hundred bytes meanwhile."""
SENTENCES_PER_BATCH = 10_000
"""Sentences encoded at a time, so that Python's integer objects never hold the whole text (not tuned)."""

Ids = Sequence[int] | np.ndarray


class Tokenizer(Protocol):
    """What the rest of the package knows about a tokenizer."""

    name: str
    vocab_size: int
    end_of_text_id: int | None
    """The id between documents; None for a single text."""
    start_id: int | None
    """The id before the first token of a document in the training text, end-of-text; None for a single text."""

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of `text`, 1-D int32; raise UserError if it holds a lone surrogate."""

    def decode(self, ids: Ids) -> str:
        """Return the text of any ids."""

    def save(self, folder: Path) -> None:
        """Write what load_tokenizer needs into the existing `folder`."""


class ByteTokenizer:
    """The 256 bytes of UTF-8."""

    name = "byte"
    vocab_size = 256
    end_of_text_id: int | None = None
    start_id: int | None = None

    def encode(self, text: str) -> np.ndarray:
        """Return the UTF-8 bytes of `text`."""
        return np.frombuffer(_to_bytes(text, "utf-8"), dtype=np.uint8).astype(np.int32)

    def decode(self, ids: Ids) -> str:
        """Read the ids as UTF-8."""
        ids = np.asarray(ids, dtype=np.int64)
        data = np.where((ids >= 0) & (ids < 256), ids, BROKEN_BYTE).astype(np.uint8)
        return data.tobytes().decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        """Write tokenizer.json."""
        _write_json(folder, {"type": self.name})


class CharTokenizer:
    """The distinct characters of the training text, sorted, and one escape id for all others.

    A character outside the vocabulary is written as the escape id and then its code point in base
    `vocab_size`, most significant digit first, in the fewest digits that reach every code point.
    """

    name = "char"
    end_of_text_id: int | None = None
    start_id: int | None = None

    def __init__(self, training_text: str) -> None:
        if not training_text:
            raise UserError("the training text is empty: a char tokenizer needs at least one character")
        self.characters = "".join(sorted(set(training_text)))
        self.code_points = _code_points(self.characters)
        self.escape_id = len(self.characters)
        self.vocab_size = self.escape_id + 1
        self.escape_digits = next(d for d in itertools.count(1) if self.vocab_size**d > LAST_CODE_POINT)
        self.id_of_code_point = np.full(LAST_CODE_POINT + 1, self.escape_id, dtype=np.int32)
        self.id_of_code_point[self.code_points] = np.arange(self.escape_id, dtype=np.int32)

    def encode(self, text: str) -> np.ndarray:
        """Return one id per known character, 1 + escape_digits ids per unknown one."""
        if len(text) > MAX_CHARS_AT_ONCE:
            starts = range(0, len(text), MAX_CHARS_AT_ONCE)
            return np.concatenate([self.encode(text[start : start + MAX_CHARS_AT_ONCE]) for start in starts])
        points = _code_points(text)
        ids: np.ndarray = self.id_of_code_point[points]
        unknown = np.flatnonzero(ids == self.escape_id)
        if not len(unknown):
            return ids
        powers = self.vocab_size ** np.arange(self.escape_digits - 1, -1, -1, dtype=np.int64)
        digits = points[unknown, None].astype(np.int64) // powers % self.vocab_size
        return np.insert(ids, np.repeat(unknown + 1, self.escape_digits), digits.ravel())

    def decode(self, ids: Ids) -> str:
        """Return the characters; an escape that is cut short or names no character is one U+FFFD."""
        ids = np.asarray(ids, dtype=np.int64)
        table = np.append(self.code_points, np.uint32(REPLACEMENT))
        points = table[np.where((ids >= 0) & (ids < self.escape_id), ids, self.escape_id)]
        if not (ids == self.escape_id).any():
            return points.astype("<u4").tobytes().decode("utf-32-le")
        return self._decode_escapes(ids.tolist(), points.tolist())

    def _decode_escapes(self, ids: list[int], points: list[int]) -> str:
        characters = []
        position = 0
        while position < len(ids):
            if ids[position] == self.escape_id:
                digits = ids[position + 1 : position + 1 + self.escape_digits]
                characters.append(self._unescape(digits))
                position += self.escape_digits
            else:
                characters.append(chr(points[position]))
            position += 1
        return "".join(characters)

    def _unescape(self, digits: list[int]) -> str:
        point = 0
        for digit in digits:
            point = point * self.vocab_size + digit
        complete = len(digits) == self.escape_digits and all(0 <= digit < self.vocab_size for digit in digits)
        is_character = point <= LAST_CODE_POINT and not 0xD800 <= point < 0xE000
        return chr(point if complete and is_character else REPLACEMENT)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json."""
        _write_json(folder, {"type": self.name, "characters": self.characters})


class SentencePieceTokenizer:
    """A SentencePiece model (bpe or unigram) that keeps every byte: unknown characters become byte pieces.

    SentencePiece is given what lies between SEPARATORS and never decodes: a table of bytes per id does.
    """

    end_of_text_id: int | None = None
    start_id: int | None = None

    def __init__(self, name: str, model: bytes) -> None:
        import sentencepiece

        if not model:
            raise ValueError("it is empty")  # SentencePiece would accept it and only log complaints
        self.name = name
        self.model = model
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self.processor.vocab_size()
        self.bytes_of_id = [*map(self._bytes_of, range(self.vocab_size)), bytes([BROKEN_BYTE])]
        self.byte_ids = [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        if not all(map(self.processor.is_byte, self.byte_ids)):
            raise ValueError("it has no byte pieces")
        self.memo: WordMemo | None = None
        pieces = [self.processor.id_to_piece(i) for i in range(self.vocab_size)]
        if name == "bpe" and words_are_independent(pieces):
            separators = [character.encode() for character in SEPARATING]
            self.memo = WordMemo(self.processor, {s: [self.byte_ids[b] for b in s] for s in separators})

    def _bytes_of(self, piece_id: int) -> bytes:
        piece = self.processor.id_to_piece(piece_id)
        if self.processor.is_byte(piece_id):
            return bytes([int(piece[3:5], 16)])
        if self.processor.is_unknown(piece_id) or self.processor.is_control(piece_id):
            return b""
        return piece.replace(SPACE_MARK, " ").encode("utf-8")

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of `text`; every line end is one byte piece."""
        data = _to_bytes(text, "utf-8")
        return self.encode_sentences(text) if self.memo is None else self.memo.encode([data])[0]

    def encode_sentences(self, text: str) -> np.ndarray:
        """Encode with SentencePiece alone; WordMemo must give the same ids."""
        parts = SEPARATORS.split(text)
        sentences, separators = parts[0::2], [*parts[1::2], ""]
        chunks = []
        for start in range(0, len(sentences), SENTENCES_PER_BATCH):
            batch = slice(start, start + SENTENCES_PER_BATCH)
            ids: list[int] = []
            encoded = map(self.processor.encode, sentences[batch])  # a list would start threads
            for sentence_ids, separator in zip(encoded, separators[batch], strict=True):
                ids += sentence_ids
                ids += [self.byte_ids[byte] for byte in separator.encode("utf-8")]
            chunks.append(np.array(ids, dtype=np.int32))
        return np.concatenate(chunks)

    def decode(self, ids: Ids) -> str:
        """Join the bytes of the pieces and read them as UTF-8."""
        ids = np.asarray(ids, dtype=np.int64)
        known = np.where((ids >= 0) & (ids < self.vocab_size), ids, self.vocab_size)
        return b"".join([self.bytes_of_id[i] for i in known.tolist()]).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer.model."""
        _write_json(folder, {"type": self.name})
        (Path(folder) / MODEL_FILE).write_bytes(self.model)


class WithEndOfText:
    """Another tokenizer and one more id, written between documents and never by `encode`."""

    def __init__(self, inner: Tokenizer) -> None:
        self.inner = inner
        self.name = inner.name
        self.end_of_text_id: int | None = inner.vocab_size
        self.start_id: int | None = inner.vocab_size
        self.vocab_size = inner.vocab_size + 1

    def encode(self, text: str) -> np.ndarray:
        """Encode with the inner tokenizer; `<|endoftext|>` within a text is ordinary text."""
        return self.inner.encode(text)

    def decode(self, ids: Ids) -> str:
        """Decode with the inner tokenizer, and the separator as `<|endoftext|>`."""
        ids = np.asarray(ids, dtype=np.int64)
        ends = np.flatnonzero(ids == self.end_of_text_id)
        if not len(ends):
            return self.inner.decode(ids)
        return END_OF_TEXT.join(
            self.inner.decode(ids[a:b]) for a, b in zip([0, *ends + 1], [*ends, len(ids)], strict=True)
        )

    def save(self, folder: Path) -> None:
        """Write the inner tokenizer, marked."""
        self.inner.save(folder)
        path = Path(folder) / TOKENIZER_FILE
        stored = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**stored, "end_of_text": True}, indent=2) + "\n", encoding="utf-8")


def train_sentencepiece(
    name: str, vocab_size: int, texts: Iterable[str], characters: int
) -> SentencePieceTokenizer:
    """Train a "bpe" or "unigram" model of exactly `vocab_size` pieces, in one thread to be repeatable.

    `texts` have `characters` characters in all; of very many, every k-th sentence is used.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_training_sentences(texts, characters),
            model_writer=model,
            model_type=name,
            vocab_size=vocab_size,
            character_coverage=0.9995,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(training_problem(name, vocab_size, str(error))) from None
    content = model.getvalue()
    return SentencePieceTokenizer(name, with_exact_scores(content) if name == "unigram" else content)


def _training_sentences(texts: Iterable[str], characters: int) -> Iterator[str]:
    """The text between separators, cut to what SentencePiece accepts; of a huge text every k-th sentence."""
    stride = 1 + characters // MAX_TRAINING_CHARS
    skip = 0
    for text in texts:
        _to_bytes(text, "utf-8")
        sentences = _sentences(text)
        yield from sentences[skip::stride]
        skip = (skip - len(sentences)) % stride


def _sentences(text: str) -> list[str]:
    """The text between separators, in strings of 1 to MAX_SENTENCE_CHARS characters."""
    rare = "\0" in text or SPACE_MARK in text
    lines = list(filter(None, SEPARATORS.split(text)[0::2] if rare else text.split("\n")))
    if max(map(len, lines), default=0) <= MAX_SENTENCE_CHARS:
        return lines
    return [
        line[start : start + MAX_SENTENCE_CHARS]
        for line in lines
        for start in range(0, len(line), MAX_SENTENCE_CHARS)
    ]


def build_tokenizer(
    dataset: DatasetConfig, texts: Iterable[str], characters: int, documents: bool
) -> Tokenizer:
    """Build the tokenizer that `dataset` names; only the training `texts` decide its vocabulary.

    With `documents` it gets an id for the end of a text, if it has none.
    """
    tokenizer: Tokenizer
    if dataset.tokenizer == "byte":
        tokenizer = ByteTokenizer()
    elif dataset.tokenizer == "char":
        distinct: set[str] = set()
        for text in texts:
            distinct.update(text)  # one unit at a time: the whole text is never in memory
        tokenizer = CharTokenizer("".join(distinct))
    elif is_foreign(dataset.tokenizer):
        tokenizer = read_named(Path(dataset.tokenizer))
    else:
        tokenizer = train_sentencepiece(dataset.tokenizer, dataset.vocab_size, texts, characters)
    return WithEndOfText(tokenizer) if documents and tokenizer.end_of_text_id is None else tokenizer


def read_named(path: Path) -> Tokenizer:
    """The tokenizer of a file that `dataset.tokenizer` names: one made elsewhere, or that of another run's data."""
    return load_tokenizer(path.parent) if is_own_file(path) else read_foreign(path)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load what `save` wrote into `folder`; raise UserError if it is missing or damaged."""
    folder = Path(folder)
    path = folder / TOKENIZER_FILE
    tokenizer: Tokenizer
    try:
        stored = parse_json(read_bytes(path))
        if stored["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {stored['schema_version']}, not {SCHEMA_VERSION}")
        if stored["type"] == "byte":
            tokenizer = ByteTokenizer()
        elif stored["type"] == "char":
            if not isinstance(stored["characters"], str):
                raise TypeError("characters is not text")
            tokenizer = CharTokenizer(stored["characters"])
        elif stored["type"] in ("bpe", "unigram"):
            path = folder / MODEL_FILE
            tokenizer = SentencePieceTokenizer(stored["type"], read_bytes(path))
        elif stored["type"] in FOREIGN:
            path = folder / FOREIGN[stored["type"]].file
            tokenizer = foreign = FOREIGN[stored["type"]](read_bytes(path))
            require_size(foreign)
        else:
            raise ValueError(f"type is {stored['type']!r}")
        return WithEndOfText(tokenizer) if stored.get("end_of_text") else tokenizer
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): prepare the data again") from None
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({error}): prepare the data again") from None


def _to_bytes(text: str, encoding: str) -> bytes:
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text holds half a character (lone surrogate {ord(text[error.start]):#06x}) at position "
            f"{error.start}: remove it"
        ) from None


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(_to_bytes(text, "utf-32-le"), dtype="<u4")


def _write_json(folder: Path, content: dict[str, Any]) -> None:
    content = {"schema_version": SCHEMA_VERSION, **content}
    (Path(folder) / TOKENIZER_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
