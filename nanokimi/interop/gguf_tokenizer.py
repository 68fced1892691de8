"""Our tokenizers as the metadata of a GGUF file, in the forms that llama.cpp has.

| tokenizer | form there | text that is cut otherwise |
|---|---|---|
| bytes | `gpt2`: the characters that stand for bytes, without a merge | none |
| characters | `t5`: each is a piece | a character outside the vocabulary is the escape id alone |
| bpe | `llama`: pieces with scores, and bytes for all else | the mark of a space, which is a space there |
| unigram | `t5`: pieces with scores | the same, and characters beyond ASCII that are no piece: `<unk>`, no bytes |
| GPT-2's tokenizer.json | `gpt2` | none |
| nanoGPT's characters | `rwkv`: the longest piece that fits, and each is a character | none |

Of these, llama.cpp has only `rwkv` without an end-of-text, at which it ends a text. A tokenizer without one names an id
that no text of its own vocabulary has: the unknown piece, the escape, or byte 0. nanoGPT's characters have none spare.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
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
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    ModelFile,
    has_exact_scores,
    read_model,
)
from nanokimi.data.tokenizers.words import SPACE_MARK
from nanokimi.errors import UserError
from nanokimi.interop.fast_tokenizer import byte_characters

NEVER_MERGED = "\ufdd0 \ufdd0"
"""A merge of two characters that no text has: llama.cpp wants at least one."""
ANY_CHARACTER = r"[\s\S]"
"""The expression by which a text is cut into characters."""
NAMED = {"\\": "\\\\", "\0": "\\x00"}
"""Characters that have to be written by their names in llama.cpp's form `rwkv`."""
FILLER = "\ufdd1{}"
"""The name of an id that the model has and the tokenizer does not."""


@dataclass
class Pieces:
    """A vocabulary in the form that llama.cpp calls `model`: texts, their kinds (SentencePiece's numbers), scores."""

    model: str
    texts: list[str]
    kinds: list[int]
    scores: list[float] | None
    settings: dict[str, Any]
    spare: int | None
    """The id that stands for end-of-text where the tokenizer has none; None: nothing does."""


def gguf_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """The metadata of a tokenizer, for a model with `vocab_size` ids.

    Raises UserError if llama.cpp has no form for it.
    """
    inner = tokenizer.inner if isinstance(tokenizer, WithEndOfText) else tokenizer
    if isinstance(inner, ByteTokenizer):
        pieces = byte_pieces()
    elif isinstance(inner, CharTokenizer):
        pieces = characters(inner)
    elif isinstance(inner, SentencePieceTokenizer):
        pieces = sentencepiece(read_model(inner.model))
    elif isinstance(inner, SentencePieceModel):
        pieces = sentencepiece(read_model(inner.content))
    else:
        assert isinstance(inner, TokenizersTokenizer), "there is no other"
        pieces = single_characters(inner) or byte_level_bpe(inner)
    if isinstance(tokenizer, WithEndOfText):
        add(pieces, END_OF_TEXT if END_OF_TEXT not in pieces.texts else END_OF_TEXT + "\n", CONTROL)
    for number in range(len(pieces.texts), vocab_size):
        add(pieces, FILLER.format(number), UNUSED)
    end = pieces.spare if tokenizer.end_of_text_id is None else tokenizer.end_of_text_id
    if len(set(pieces.texts)) != len(pieces.texts) or "" in pieces.texts:
        raise UserError(
            "the tokenizer has two pieces of one name, or one without: llama.cpp has no form for it"
        )
    values: dict[str, Any] = {
        "model": pieces.model,
        "tokens": pieces.texts,
        "token_type": pieces.kinds,
        **({} if pieces.scores is None else {"scores": pieces.scores}),
        **({} if end is None else {"bos_token_id": end, "eos_token_id": end}),
        "add_bos_token": tokenizer.start_id is not None,
        "add_eos_token": False,
        **pieces.settings,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in values.items()}


def add(pieces: Pieces, text: str, kind: int) -> None:
    """One more piece, which no text contains."""
    pieces.texts.append(text)
    pieces.kinds.append(kind)
    if pieces.scores is not None:
        pieces.scores.append(0.0)


def byte_pieces() -> Pieces:
    """The 256 bytes."""
    settings = {"pre": "gpt-2", "merges": [NEVER_MERGED]}
    return Pieces("gpt2", list(byte_characters()), [NORMAL] * 256, None, settings, spare=0)


def characters(tokenizer: CharTokenizer) -> Pieces:
    """The characters of a vocabulary, each a piece of its own, and the escape for all others.

    Raises UserError if the vocabulary has zero, which ends a text there, or the mark of a space.
    """
    for character, name in (("\0", "NUL"), (SPACE_MARK, f"U+{ord(SPACE_MARK):04X}")):
        if character in tokenizer.characters:
            raise UserError(
                f"the tokenizer's characters include {name}, which llama.cpp cannot tell from others: use --format hf"
            )
    texts = [SPACE_MARK if character == " " else character for character in tokenizer.characters]
    size = len(texts)
    return Pieces(
        "t5",
        [*texts, "<unk>"],
        [NORMAL] * size + [UNKNOWN],
        [-1.0] * size + [0.0],
        {**unigram_settings(None), "unknown_token_id": size},
        spare=size,
    )


def sentencepiece(model: ModelFile) -> Pieces:
    """The pieces of a SentencePiece model. Raises UserError if llama.cpp would cut its texts otherwise."""
    if any(piece.kind == USER_DEFINED for piece in model.pieces) or not model.escape_whitespaces:
        raise UserError(
            "the SentencePiece model has user-defined pieces or keeps spaces as they are: there is no form for it"
        )
    unknown = next(i for i, piece in enumerate(model.pieces) if piece.kind == UNKNOWN)
    texts = [piece.text for piece in model.pieces]
    kinds = [piece.kind for piece in model.pieces]
    scores = [piece.score for piece in model.pieces]
    if model.is_bpe:
        if model.charsmap or model.remove_extra_whitespaces or BYTE not in kinds:
            raise UserError(
                "the SentencePiece model normalises text, or has no bytes, which llama.cpp's form of bpe does not do: "
                "use --format hf"
            )
        settings = {"add_space_prefix": model.add_dummy_prefix, "unknown_token_id": unknown}
        return Pieces("llama", texts, kinds, scores, settings, spare=unknown)
    if not has_exact_scores(model):
        raise UserError(
            "the unigram tokenizer has scores whose sums are rounded, so that llama.cpp cuts some texts otherwise: "
            "only tokenizers of this version, or bpe, can be exported"
        )
    lowest = min(piece.score for piece in model.pieces if piece.kind == NORMAL)
    for i, piece in enumerate(model.pieces):
        # There is no falling back to bytes there. A byte of ASCII is a character: it can be a piece itself.
        byte = int(piece.text[3:5], 16) if piece.kind == BYTE else 0
        if 0 < byte < 128 and chr(byte) != " " and chr(byte) not in texts:
            texts[i], kinds[i], scores[i] = chr(byte), NORMAL, lowest
    settings = {**unigram_settings(model), "unknown_token_id": unknown}
    return Pieces("t5", texts, kinds, scores, settings, spare=unknown)


def unigram_settings(model: ModelFile | None) -> dict[str, Any]:
    """How llama.cpp normalises text for its form of unigram; without a model, not at all."""
    settings: dict[str, Any] = {
        "add_space_prefix": model is not None and model.add_dummy_prefix,
        "remove_extra_whitespaces": model is not None and model.remove_extra_whitespaces,
    }
    if model is not None and model.charsmap:
        settings["precompiled_charsmap"] = model.charsmap
    return settings


def single_characters(tokenizer: TokenizersTokenizer) -> Pieces | None:
    """A tokenizer.json of single characters that refuses all others, as `import` makes it of nanoGPT's meta.pkl."""
    content = json.loads(tokenizer.content)
    model, cut = content["model"], content.get("pre_tokenizer") or {}
    split = {"type": "Split", "pattern": {"Regex": ANY_CHARACTER}, "behavior": "Isolated", "invert": False}
    if model.get("type") != "WordLevel" or cut != split or model.get("unk_token") in model["vocab"]:
        return None
    by_id = {number: text for text, number in model["vocab"].items()}
    others = content.get("normalizer") or content.get("added_tokens")
    if (
        others
        or sorted(by_id) != list(range(len(by_id)))
        or not all(len(text) == 1 for text in by_id.values())
    ):
        return None
    # A backslash begins the name of another character there, and NUL ends a text.
    texts = [NAMED.get(by_id[i], by_id[i]) for i in range(len(by_id))]
    return Pieces("rwkv", texts, [NORMAL] * len(texts), None, {}, spare=None)


def byte_level_bpe(tokenizer: TokenizersTokenizer) -> Pieces:
    """A tokenizer.json in GPT-2's form. Raises UserError for any other."""
    content = json.loads(tokenizer.content)
    model, cut = content["model"], content.get("pre_tokenizer") or {}
    plain = model.get("type") == "BPE" and not any(
        model.get(name)
        for name in (
            "dropout",
            "unk_token",
            "continuing_subword_prefix",
            "end_of_word_suffix",
            "byte_fallback",
        )
    )
    like_gpt2 = cut.get("type") == "ByteLevel" and cut.get("use_regex", True) and not cut["add_prefix_space"]
    within_text = [one for one in content.get("added_tokens") or [] if not one["special"]]
    if not plain or not like_gpt2 or within_text or content.get("normalizer") or model.get("ignore_merges"):
        raise UserError(
            "the tokenizer.json is not in GPT-2's form (a BPE of bytes, cut by its expression), the only one that is "
            "exported as gguf: use --format hf"
        )
    added = {one["id"]: one["content"] for one in content.get("added_tokens") or []}
    by_id = {number: text for text, number in model["vocab"].items()} | added
    size = tokenizer.vocab_size
    texts = [by_id.get(i, FILLER.format(i)) for i in range(size)]
    kinds = [CONTROL if i in added else NORMAL if i in by_id else UNUSED for i in range(size)]
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    settings = {"pre": "gpt-2", "merges": merges or [NEVER_MERGED]}
    return Pieces("gpt2", texts, kinds, None, settings, spare=0)
