"""Exported tokenizers: transformers' AutoTokenizer gives our ids on 10,000 lines of hostile text, and on any text."""

from __future__ import annotations

import inspect
import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from conftest import make_text
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Fast
from transformers import AutoTokenizer

from nanokimi.data.tokenizers.foreign import SentencePieceModel, TokenizersTokenizer
from nanokimi.data.tokenizers.opening import opening_ids
from nanokimi.data.tokenizers.own import (
    ByteTokenizer,
    CharTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    WithEndOfText,
    read_named,
    train_sentencepiece,
)
from nanokimi.data.tokenizers.sentencepiece_file import has_exact_scores, read_model
from nanokimi.errors import UserError
from nanokimi.interop.fast_tokenizer import fast_tokenizer, tokenizer_config
from nanokimi.interop.hostile_text import FRAGMENTS, hostile_lines
from nanokimi.interop.import_run import tokenizer_files

SOURCE = Path(inspect.getfile(fast_tokenizer)).read_text(encoding="utf-8")
TEXT = make_text(8_000) + SOURCE + " ".join(FRAGMENTS) * 3 + "  two  spaces   three <0x41> x=0; " * 20


def sentencepiece_model(**options: Any) -> bytes:
    model = io.BytesIO()
    lines = iter(TEXT.replace("\0", "").split("\n"))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, vocab_size=480, num_threads=1, minloglevel=2, **options
    )
    return model.getvalue()


def small_bpe() -> bytes:
    """A tokenizer.json with GPT-2's split into words, a template, truncation and an end-of-text of its own."""
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    fast = Fast(models.BPE())
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator([TEXT], trainer)
    fast.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    fast.enable_truncation(8)
    return fast.to_str().encode()


IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "model_type": "bpe"}
MADE = {
    "byte": lambda: ByteTokenizer(),
    "char": lambda: CharTokenizer(TEXT),
    "few characters": lambda: CharTokenizer("the small\r"),
    "bpe": lambda: train_sentencepiece("bpe", 700, [TEXT], len(TEXT)),
    "unigram": lambda: train_sentencepiece("unigram", 500, [TEXT], len(TEXT)),
    "unigram without signs": lambda: train_sentencepiece("unigram", 272, ["the small dog ran. " * 60], 1200),
    "foreign bpe": lambda: SentencePieceModel(sentencepiece_model(**IDENTITY, byte_fallback=True)),
    "foreign, no bytes": lambda: SentencePieceModel(sentencepiece_model(**IDENTITY)),
    "tokenizer.json": lambda: TokenizersTokenizer(small_bpe()),
}


@pytest.fixture(scope="module")
def made() -> dict[str, Tokenizer]:
    return {name: make() for name, make in MADE.items()}


def loaded(tokenizer: Tokenizer, folder: Path) -> Any:
    """What AutoTokenizer makes of an exported tokenizer, in a folder of a DeepSeek-V3."""
    (folder / "config.json").write_text('{"model_type": "deepseek_v3"}')
    (folder / "tokenizer.json").write_text(json.dumps(fast_tokenizer(tokenizer)), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(tokenizer, 1 << 20)))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", MADE)
def test_ids_are_the_same_on_10_000_hostile_lines(
    name: str, made: dict[str, Tokenizer], tmp_path: Path
) -> None:
    tokenizer = made[name] if made[name].end_of_text_id is not None else WithEndOfText(made[name])
    fast = loaded(tokenizer, tmp_path)
    lines = hostile_lines(10_000, 1, TEXT)
    assert any("<|endoftext|>" in line for line in lines) and any("\ufeff" in line for line in lines)
    theirs = fast(lines, add_special_tokens=False)["input_ids"]
    wrong = [line for line, ids in zip(lines, theirs, strict=True) if tokenizer.encode(line).tolist() != ids]
    assert not wrong, f"{len(wrong)} lines, for example {wrong[0]!a}"
    begun = fast(lines)["input_ids"]
    start = [] if tokenizer.start_id is None else [tokenizer.start_id]
    assert begun == [[*start, *ids] for ids in theirs]
    assert [opening_ids(tokenizer, line) for line in lines[:500]] == begun[:500]
    assert fast.bos_token_id == tokenizer.start_id
    assert fast.eos_token_id == tokenizer.end_of_text_id and len(fast) == tokenizer.vocab_size
    assert fast.decode([tokenizer.end_of_text_id]) == "<|endoftext|>"
    if name in ("byte", "bpe", "unigram", "tokenizer.json"):
        assert [fast.decode(ids) for ids in theirs[:500]] == lines[:500]


assigned = st.characters(exclude_categories=("Cn", "Cs"), max_codepoint=0xEFFFF).filter(
    lambda c: unicodedata.category(c) != "Cn"
)
texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(assigned, max_size=8)), max_size=8)


@pytest.fixture(scope="module")
def fast_forms(made: dict[str, Tokenizer]) -> dict[str, Fast]:
    forms = {}
    for name in ("byte", "few characters", "bpe", "unigram", "unigram without signs"):
        forms[name] = Fast.from_str(json.dumps(fast_tokenizer(made[name])))
    return forms


@settings(max_examples=150, deadline=None)
@given(texts)
def test_ids_are_the_same_on_any_text(
    made: dict[str, Tokenizer], fast_forms: dict[str, Fast], parts: list[str]
) -> None:
    text = "".join(parts)
    for name, fast in fast_forms.items():
        assert fast.encode(text).ids == made[name].encode(text).tolist(), name


def test_a_tokenizer_json_that_says_nothing_of_added_tokens_gets_an_end_of_text() -> None:
    content = json.loads(small_bpe()) | {"post_processor": None}
    del content["added_tokens"]
    pieces = [piece for piece in content["model"]["vocab"] if piece != "<|endoftext|>"]
    content["model"]["vocab"] = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = WithEndOfText(TokenizersTokenizer(json.dumps(content).encode()))
    fast = Fast.from_str(json.dumps(fast_tokenizer(tokenizer)))
    assert fast.token_to_id("<|endoftext|>") == tokenizer.end_of_text_id


def test_an_import_keeps_both_files_of_a_runs_own_tokenizer(
    made: dict[str, Tokenizer], tmp_path: Path
) -> None:
    made["bpe"].save(tmp_path)
    (tmp_path / "kept").mkdir()
    for name, content in tokenizer_files(tmp_path, "", str(tmp_path / "tokenizer.json")).items():
        (tmp_path / "kept" / name).write_bytes(content)
    kept = read_named(tmp_path / "kept" / "tokenizer.json")
    assert kept.encode(TEXT[:2000]).tolist() == made["bpe"].encode(TEXT[:2000]).tolist()


def test_a_character_outside_the_vocabulary_is_shown_as_one_replacement(made: dict[str, Tokenizer]) -> None:
    fast = Fast.from_str(json.dumps(fast_tokenizer(made["few characters"])))
    ids = fast.encode("sm\u00e9all\U0001f600").ids
    assert fast.decode(ids) == "sm\ufffdall\ufffd" and fast.decode(ids[:4]) == "sm\ufffd"


def test_scores_of_a_new_unigram_model_add_up_without_rounding(made: dict[str, Tokenizer]) -> None:
    tokenizer = made["unigram"]
    assert isinstance(tokenizer, SentencePieceTokenizer)
    model = read_model(tokenizer.model)
    assert has_exact_scores(model) and len({piece.score for piece in model.pieces}) > 20
    assert [p.text for p in model.pieces[:9]] == [tokenizer.processor.id_to_piece(i) for i in range(9)]


def test_an_older_unigram_model_whose_cuts_depend_on_rounding_is_refused() -> None:
    older = SentencePieceTokenizer("unigram", sentencepiece_model(model_type="unigram", byte_fallback=True))
    with pytest.raises(UserError, match="scores whose sums are rounded"):
        fast_tokenizer(older)


@pytest.mark.parametrize("damage", [b"\x0a", b"\x0a\xff\xff\xff\xff\x0f", b"\x0b\x00", b"\xff" * 12])
def test_a_damaged_model_file_is_one_line(damage: bytes) -> None:
    with pytest.raises(ValueError, match="it is damaged"):
        read_model(sentencepiece_model(**IDENTITY) + damage)
