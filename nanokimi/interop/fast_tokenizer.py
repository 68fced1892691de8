"""Our tokenizers as a `tokenizer.json` of the library `tokenizers`, which transformers' AutoTokenizer loads.

The ids are the same for every text, with two exceptions for characters: a code point that Unicode does not assign
becomes the escape id alone, and decoding shows a character outside the vocabulary as U+FFFD.

- Bytes are a BPE without merges over the 256 characters that stand for bytes.
- Characters are a BPE without merges, too. An escape is several ids for one character, which no model there has, so the
  normaliser writes it: a compiled table, made by SentencePiece, replaces every assigned character that the vocabulary
  lacks by a mark and its digits. The library applies such a table to what a reader sees as one character, so a control
  character is put between all characters before, and taken out again.
- SentencePiece's mark of a space is written as a space. The mark itself, line ends and zeros are then characters
  outside the vocabulary, which become byte pieces, as in `own`.
"""

from __future__ import annotations

import base64
import json
import unicodedata
from functools import cache
from typing import Any

from nanokimi.data.documents import END_OF_TEXT
from nanokimi.data.tokenizers.foreign import SentencePieceModel, TokenizersTokenizer
from nanokimi.data.tokenizers.own import (
    ByteTokenizer,
    CharTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    WithEndOfText,
)
from nanokimi.data.tokenizers.sentencepiece_file import (
    BYTE,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    ModelFile,
    has_exact_scores,
    read_model,
)
from nanokimi.data.tokenizers.words import SPACE_MARK
from nanokimi.errors import UserError

NONCHARACTERS = range(0xFDD0, 0xFDF0)
"""Code points that Unicode will never assign."""
LAST_MAPPED = 0xEFFFF
"""The two planes of private use above are not in the table of characters, which would be twice as large."""
HIDDEN_UNKNOWN = "<unk>\n"
"""The name of a unigram model's unknown piece: no text contains it, because line ends are cut off."""
Json = dict[str, Any]


def fast_tokenizer(tokenizer: Tokenizer, *, starts: bool = True) -> Json:
    """The content of tokenizer.json for any of our tokenizers.

    With `starts` it puts end-of-text before a text, as `opening_ids` does, unless told to add no special tokens.
    Raises UserError for a SentencePiece model whose ids depend on rounding.
    """
    inner = tokenizer.inner if isinstance(tokenizer, WithEndOfText) else tokenizer
    if isinstance(inner, ByteTokenizer):
        content = byte_level(inner)
    elif isinstance(inner, CharTokenizer):
        content = characters(inner)
    elif isinstance(inner, SentencePieceTokenizer):
        content = own_sentencepiece(read_model(inner.model))
    elif isinstance(inner, SentencePieceModel):
        content = foreign_sentencepiece(read_model(inner.content))
    else:
        assert isinstance(inner, TokenizersTokenizer), "there is no other"
        content = json.loads(inner.content)
        content |= {"truncation": None, "padding": None, "post_processor": None}
    if isinstance(tokenizer, WithEndOfText):
        added = content.get("added_tokens") or []  # a file may leave them out
        content["added_tokens"] = [*added, special_token(inner.vocab_size, END_OF_TEXT)]
    if starts and tokenizer.start_id is not None:
        content["post_processor"] = after(tokenizer.start_id)
    return content


def after(start_id: int) -> Json:
    """The step of a tokenizer that puts end-of-text before each text."""
    start = {"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [start, first],
        "pair": [start, first, second],
        "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": [start_id], "tokens": [END_OF_TEXT]}},
    }


def tokenizer_config(tokenizer: Tokenizer, context_length: int, *, starts: bool = True) -> Json:
    """The content of tokenizer_config.json. Special tokens within a text are ordinary text, as they are here."""
    end = None if tokenizer.end_of_text_id is None else END_OF_TEXT
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "model_input_names": ["input_ids", "attention_mask"],
        **({"bos_token": end} if starts and tokenizer.start_id is not None else {}),
        **({} if end is None else {"eos_token": end}),
    }


def special_token(number: int, text: str) -> Json:
    """An added token that is never part of a text."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": text, **flags, "special": True}


def whole(model: Json, **parts: Json) -> Json:
    """A tokenizer.json of a model and other parts."""
    empty = dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    )
    return {"version": "1.0", **empty, "added_tokens": [], **parts, "model": model}


def bpe(vocab: dict[str, int], merges: list[list[str]], **settings: Any) -> Json:
    """A BPE model."""
    plain = {"dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    flags = {"unk_token": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE", **plain, **flags, **settings, "vocab": vocab, "merges": merges}


def sequence(key: str, *parts: Json) -> Json:
    """Several normalisers or decoders, one after the other."""
    return {"type": "Sequence", key: list(parts)}


def replaced(pattern: str, content: str, *, regex: bool = False) -> Json:
    """Every occurrence of a text, or of a regular expression, replaced."""
    return {"type": "Replace", "pattern": {"Regex" if regex else "String": pattern}, "content": content}


def byte_level(tokenizer: ByteTokenizer) -> Json:
    """The 256 bytes, by the characters that stand for them."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    vocab = {character: byte for byte, character in enumerate(byte_characters())}
    return whole(bpe(vocab, []), pre_tokenizer=level, decoder=level)


@cache
def byte_characters() -> list[str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    number = {byte: byte for byte in printable} | {byte: 256 + i for i, byte in enumerate(others)}
    return [chr(number[byte]) for byte in range(256)]


def characters(tokenizer: CharTokenizer) -> Json:
    """The characters of a vocabulary, and escapes for all others that are assigned.

    The table cannot hold zeros, nor what is put between characters: noncharacters, which no text has, stand for them.
    """
    known = set(tokenizer.characters)
    mark, zero, instead = [c for c in map(chr, NONCHARACTERS) if c not in known][:3]
    between = next(c for c in map(chr, (*range(1, 32), *range(127, 160), 0xAD, 0x61C)) if c not in known)
    symbols = [*tokenizer.characters.replace("\0", zero), mark]
    escape = escapes(tokenizer, symbols)
    table = charsmap({{"\0": zero, between: instead}.get(c, c): text for c, text in escape.items()})
    normalizer = sequence(
        "normalizers",
        replaced("\0", zero),
        replaced(between, instead),
        replaced(r"(?<=[\s\S])(?=[\s\S])", between, regex=True),
        {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()},
        replaced(between, ""),
    )
    lost = replaced(rf"{mark}[\s\S]{{0,{tokenizer.escape_digits}}}", "\ufffd", regex=True)
    return whole(
        bpe({symbol: number for number, symbol in enumerate(symbols)}, [], unk_token=mark),
        normalizer=normalizer,
        decoder=sequence("decoders", {"type": "Fuse"}, lost, replaced(zero, "\0")),
    )


def escapes(tokenizer: CharTokenizer, symbols: list[str]) -> dict[str, str]:
    """For each assigned character that the vocabulary lacks, the symbols of its ids."""
    known = set(tokenizer.characters)
    assigned = [c for c in assigned_characters() if c not in known]
    ids = tokenizer.encode("".join(assigned)).reshape(len(assigned), -1)
    return {c: "".join(symbols[i] for i in row) for c, row in zip(assigned, ids.tolist(), strict=True)}


@cache
def assigned_characters() -> str:
    """Every character that Unicode assigns, without the planes above LAST_MAPPED."""
    every = map(chr, range(LAST_MAPPED + 1))
    return "".join(c for c in every if unicodedata.category(c) not in ("Cn", "Cs"))


def charsmap(rules: dict[str, str]) -> bytes:
    """The compiled table of a map of characters, which SentencePiece makes."""
    import sentencepiece

    sentencepiece.set_min_log_level(2)
    normalizer = sentencepiece.SentencePieceNormalizer(
        norm_map=list(rules.items()),
        add_dummy_prefix=False,
        escape_whitespaces=False,
        remove_extra_whitespaces=False,
    )
    spec = normalizer.serialized_normalizer_spec()
    wrapped = b"\x1a" + _length(len(spec)) + spec  # a model file that holds nothing else
    return read_model(wrapped).charsmap


def _length(number: int) -> bytes:
    low = number & 0x7F
    return bytes([low]) if number < 0x80 else bytes([low | 0x80]) + _length(number >> 7)


def own_sentencepiece(model: ModelFile) -> Json:
    """A bpe or unigram model of ours: spaces as they are, everything unknown as bytes, each line on its own."""
    names = [piece.text.replace(SPACE_MARK, " ") for piece in model.pieces]
    return whole(
        pieces_model(model, names),
        normalizer=sequence("normalizers", *broken_byte_names(model, names)),
        pre_tokenizer={
            "type": "Split",
            "pattern": {"String": "\n"},
            "behavior": "Isolated",
            "invert": False,
        },
        decoder=sequence("decoders", {"type": "ByteFallback"}, {"type": "Fuse"}),
    )


def broken_byte_names(model: ModelFile, names: list[str]) -> list[Json]:
    """For unigram, what keeps a text such as <0x41> from being read as the byte piece of that name.

    If all its characters are pieces, these are likelier. Otherwise one that is no piece is written as its own byte.
    """
    missing = [c for c in "<>x0" if c not in names]
    if model.is_bpe or not missing:
        return []
    return [replaced(missing[0], f"<0x{ord(missing[0]):02X}>")]


def foreign_sentencepiece(model: ModelFile) -> Json:
    """A SentencePiece model made elsewhere, with the normalisation that it was trained with."""
    if not model.escape_whitespaces:
        raise UserError("the SentencePiece model keeps spaces as they are: there is no fast form for it")
    steps: list[Json] = []
    if model.charsmap:
        table = base64.b64encode(model.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": table})
    if model.remove_extra_whitespaces:
        steps += [replaced("^ +| +$", "", regex=True), replaced(" {2,}", " ", regex=True)]
    if model.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": " "})
    decoders = [replaced(SPACE_MARK, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if model.add_dummy_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return whole(
        pieces_model(model, [piece.text for piece in model.pieces]),
        normalizer=sequence("normalizers", *steps, replaced(" ", SPACE_MARK)),
        decoder=sequence("decoders", *decoders),
    )


def pieces_model(model: ModelFile, names: list[str]) -> Json:
    """The BPE or unigram model of a SentencePiece model's pieces."""
    if any(piece.kind == USER_DEFINED for piece in model.pieces):
        raise UserError("the SentencePiece model has user-defined pieces: there is no fast form for it")
    unknown = next(i for i, piece in enumerate(model.pieces) if piece.kind == UNKNOWN)
    has_bytes = any(piece.kind == BYTE for piece in model.pieces)
    if model.is_bpe:
        vocab = {name: number for number, name in enumerate(names)}
        flags = {"unk_token": names[unknown], "fuse_unk": True, "byte_fallback": has_bytes}
        return bpe(vocab, merges(model, names), **flags)
    if not has_exact_scores(model):
        raise UserError(
            "the unigram tokenizer has scores whose sums are rounded, so that other implementations cut some texts "
            "otherwise: only tokenizers of this version, or bpe, can be exported"
        )
    lowest = min(piece.score for piece in model.pieces if piece.kind == NORMAL)
    never = 16 * lowest  # below what the characters of its name cost
    scored = [
        [name, piece.score if piece.kind == NORMAL else never]
        for name, piece in zip(names, model.pieces, strict=True)
    ]
    scored[unknown][0] = HIDDEN_UNKNOWN
    return {"type": "Unigram", "unk_id": unknown, "vocab": scored, "byte_fallback": has_bytes}


def merges(model: ModelFile, names: list[str]) -> list[list[str]]:
    """Every pair of pieces whose joint text is a piece, the one with the best score first."""
    score = {
        name: piece.score for name, piece in zip(names, model.pieces, strict=True) if piece.kind == NORMAL
    }
    found = [
        (-score[name], i, [name[:i], name[i:]])
        for name in score
        for i in range(1, len(name))
        if name[:i] in score and name[i:] in score
    ]
    return [pair for _, _, pair in sorted(found, key=lambda one: one[:2])]
