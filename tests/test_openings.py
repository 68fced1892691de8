"""A prompt begins a document: every way to write or score a text puts before it what stood there in training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY_GPT, make_text
from test_foreign import END, byte_level
from torch.nn import functional as F

from nanokimi.config import DatasetConfig
from nanokimi.data.store import PreparedData, prepare
from nanokimi.data.tokenizers.opening import opening_ids
from nanokimi.data.tokenizers.own import ByteTokenizer, WithEndOfText
from nanokimi.errors import TrainingError, UserError
from nanokimi.generation.sampling import Sampling
from nanokimi.generation.text import TextSettings, complete, requests_of
from nanokimi.inside.look import write_and_look
from nanokimi.inside.subject import Subject
from nanokimi.interop.gguf_tokenizer import gguf_tokenizer
from nanokimi.interop.hf_write import write_hf_folder
from nanokimi.interop.verify import verify_hf_folder
from nanokimi.measure.story_world import continuation_nats
from nanokimi.model.build import LanguageModel, build_model
from nanokimi.serve.requests import understand

DOCUMENTS = [make_text(300, seed=number) for number in range(40)]
PROMPT = DOCUMENTS[0][:30]


@pytest.fixture(scope="module")
def of_documents(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("documents")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS)
    (folder / "text.jsonl").write_text(lines)
    dataset = DatasetConfig(path=str(folder / "text.jsonl"), tokenizer="byte", cache=str(folder / "cache"))
    return prepare(dataset, folder / "data", context_length=16)


@pytest.fixture
def model(of_documents: PreparedData) -> LanguageModel:
    sizes = replace(TINY_GPT, vocab_size=of_documents.tokenizer.vocab_size, max_position_embeddings=64)
    return build_model(sizes, seed=3).eval()


def test_an_opening_has_the_ids_of_a_document_and_the_end_of_the_one_before(
    of_documents: PreparedData,
) -> None:
    tokenizer, ids = of_documents.tokenizer, of_documents.val_ids.tolist()
    end = of_documents.metadata["end_of_text_id"]
    first, second = ids.index(end), ids.index(end, ids.index(end) + 1)
    text = tokenizer.decode(ids[first + 1 : second])
    assert text in DOCUMENTS and opening_ids(tokenizer, text) == ids[first:second]


def test_an_empty_prompt_begins_a_document_and_is_refused_where_there_is_only_one_text(
    of_documents: PreparedData, model: LanguageModel
) -> None:
    tokenizer = of_documents.tokenizer
    found = complete(model, tokenizer, "", TextSettings(max_new_tokens=2))[0]
    assert found.prompt_tokens == 1 and found.tokens == 2
    with pytest.raises(UserError, match="the prompt is empty"):
        requests_of(ByteTokenizer(), [""], TextSettings())


def test_nothing_stands_before_a_single_text_even_if_its_tokenizer_has_an_end_of_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(make_text())
    named = str(byte_level(tmp_path / "tokenizer.json", special=[END]))
    dataset = DatasetConfig(path=str(tmp_path / "text.txt"), tokenizer=named, cache=str(tmp_path / "cache"))
    tokenizer = prepare(dataset, tmp_path / "data", context_length=16).tokenizer
    assert tokenizer.end_of_text_id is not None
    assert opening_ids(tokenizer, PROMPT) == tokenizer.encode(PROMPT).tolist()


def test_whatever_writes_or_serves_reads_an_opening(of_documents: PreparedData, model: LanguageModel) -> None:
    tokenizer = of_documents.tokenizer
    expected = opening_ids(tokenizer, PROMPT)
    assert requests_of(tokenizer, [PROMPT], TextSettings())[0].prompt_ids == expected
    asked = {"model": "m", "prompt": PROMPT}
    assert understand(asked, tokenizer, 64, 8).requests[0].prompt_ids == expected
    own_ids = [1, 2, 3]
    assert understand({**asked, "prompt": own_ids}, tokenizer, 64, 8).requests[0].prompt_ids == own_ids
    assert complete(model, tokenizer, PROMPT, TextSettings(max_new_tokens=2))[0].prompt_tokens == len(
        expected
    )


def test_the_first_token_written_is_the_likeliest_after_the_end_of_the_document_before(
    of_documents: PreparedData, model: LanguageModel
) -> None:
    tokenizer = of_documents.tokenizer
    ids = [of_documents.metadata["end_of_text_id"], *tokenizer.encode(PROMPT).tolist()]
    with torch.inference_mode():
        likeliest = int(model(torch.tensor([ids])).logits_BTW[0, -1].argmax())
    greedy = TextSettings(max_new_tokens=1, sampling=Sampling(temperature=0.0))
    assert complete(model, tokenizer, PROMPT, greedy)[0].text == tokenizer.decode([likeliest])


def test_the_inside_view_shows_what_was_read_and_has_a_surprise_for_the_first_character(
    of_documents: PreparedData, model: LanguageModel
) -> None:
    look = write_and_look(
        Subject("Tiny", model, of_documents.tokenizer, 64), PROMPT, TextSettings(max_new_tokens=3)
    )
    assert look.ids[: len(PROMPT) + 1] == opening_ids(of_documents.tokenizer, PROMPT)
    assert look.prompt == PROMPT and look.text.startswith(PROMPT)
    assert look.tokens[0].surprise is None and look.tokens[1].surprise is not None


def test_a_continuation_is_scored_as_the_evaluation_scores_it(
    of_documents: PreparedData, model: LanguageModel
) -> None:
    ids = torch.tensor(opening_ids(of_documents.tokenizer, PROMPT + "red"))
    with torch.inference_mode():
        nats_T = F.cross_entropy(model(ids[None, :-1]).logits_BTW[0], ids[1:], reduction="none")
    found = continuation_nats(model, of_documents.tokenizer, 64, PROMPT, ["red", "the"])
    assert found[0] == pytest.approx(float(nats_T[-3:].sum()), rel=1e-5)


@pytest.mark.parametrize("starts", [True, False])
def test_an_exported_folder_begins_a_text_alike(
    starts: bool, of_documents: PreparedData, model: LanguageModel, tmp_path: Path
) -> None:
    """With the command's own check of the folder; torchtitan's form (`starts` False) begins with the text itself."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = of_documents.tokenizer
    write_hf_folder(model, tokenizer, 64, tmp_path, starts=starts)
    ids = opening_ids(tokenizer, PROMPT) if starts else tokenizer.encode(PROMPT).tolist()
    assert AutoTokenizer.from_pretrained(tmp_path)(PROMPT)["input_ids"] == ids
    assert AutoConfig.from_pretrained(tmp_path).bos_token_id == (tokenizer.start_id if starts else None)
    assert verify_hf_folder(tmp_path, model, of_documents, 64, starts=starts).lines_that_differ == 0
    with pytest.raises(TrainingError, match="gives other ids"):
        verify_hf_folder(tmp_path, model, of_documents, 64, starts=not starts)


def test_llama_cpp_puts_it_before_a_prompt_too() -> None:
    plain, documents = ByteTokenizer(), WithEndOfText(ByteTokenizer())
    assert gguf_tokenizer(plain, 256)["tokenizer.ggml.add_bos_token"] is False
    found = gguf_tokenizer(documents, 257)
    assert found["tokenizer.ggml.add_bos_token"] is True
    assert found["tokenizer.ggml.bos_token_id"] == documents.end_of_text_id
