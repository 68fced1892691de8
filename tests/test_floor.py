"""The floor is what one who knows the world gets when documents are scored from their beginnings, and only then."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY_GPT, TINY_KIMI
from test_tales_grammar import enumerate_toy
from torch import nn

from nanokimi import tales
from nanokimi.config import DatasetConfig
from nanokimi.data.batches import iterate_validation, scored_windows
from nanokimi.data.store import PreparedData, prepare
from nanokimi.measure.evaluate import evaluate
from nanokimi.measure.floor import floor_of, text_floor
from nanokimi.model.build import build_model
from nanokimi.model.output import Output
from nanokimi.train.result import floor_gaps


class Oracle(nn.Module):
    """Knows the world exactly, and of the text what it is shown: the best that any model can do with a window.

    The text is a row of documents, each drawn by its probability. A state is a place in a document; before a window
    is read, each is as likely as it is frequent, and each token that is read rules some out. What it predicts is what
    the best model trained on random cuts of the text would, too.
    """

    def __init__(self, documents: list[list[int]], log_probabilities: list[float], end: int) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        chances = [math.exp(log) for log in log_probabilities]
        # state i has just told tokens[i]; the end of a document is one state, whichever document it was
        self.tokens = np.array([end] + [token for one in documents for token in one])
        self.prior = np.array([1.0] + [p for p, one in zip(chances, documents, strict=True) for _ in one])
        self.begins = np.cumsum([1, *map(len, documents)])[:-1]
        self.lasts = np.cumsum([1, *map(len, documents)])[1:] - 1
        self.chances, self.vocab_size = np.array(chances), end + 1

    def next_states(self, belief: np.ndarray) -> np.ndarray:
        following = np.append(0.0, belief[:-1])
        following[self.begins] = belief[0] * self.chances
        following[0] = belief[self.lasts].sum()
        return following

    def forward(self, ids_BT: torch.Tensor) -> Output:
        logits_BTW = np.zeros((*ids_BT.shape, self.vocab_size))
        for row, ids in enumerate(ids_BT.tolist()):
            belief = self.prior
            for place, token in enumerate(ids):
                belief = np.where(self.tokens == token, belief, 0.0)
                if not belief.any():  # behind the end of a window that was filled up
                    break
                following = self.next_states(belief / belief.sum())
                chances_W = np.bincount(self.tokens, weights=following, minlength=self.vocab_size)
                with np.errstate(divide="ignore"):
                    logits_BTW[row, place] = np.log(chances_W)
                belief = following
        return Output(torch.from_numpy(logits_BTW))


@pytest.fixture(scope="module")
def filler(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("filler")
    (folder / "filler.txt").write_text("abcdefghij" * 100)
    return prepare(DatasetConfig(path=str(folder / "filler.txt")), folder / "data", context_length=4)


@pytest.fixture(scope="module")
def world(filler: PreparedData) -> tuple[Oracle, PreparedData]:
    """The toy world of test_tales_grammar.py, character by character, and 300 documents that it told."""
    texts = enumerate_toy()
    letters = sorted(set("".join(texts)))
    end = len(letters)
    documents = [[*map(letters.index, text)] for text in texts]
    logs = list(texts.values())
    drawn = np.random.default_rng(3).choice(len(documents), 300, p=np.exp(logs))
    told = [[*documents[i], end] for i in drawn]
    data = replace(
        filler,
        train_ids=np.array([end]),
        val_ids=np.concatenate([np.array(one) for one in told]).astype(np.uint16),
        val_doc_offsets=np.cumsum([0, *map(len, told)]).astype(np.uint64),
        val_doc_nats=np.array([-logs[i] for i in drawn]),
    )
    return Oracle(documents, logs, end), data


def test_one_who_knows_the_world_gets_exactly_the_floor(world: tuple[Oracle, PreparedData]) -> None:
    """Scored from their beginnings, documents cost what the world says; cut anywhere, they cost more."""
    oracle, data = world
    floor = text_floor(data, 64, "val")
    assert floor is not None and floor.documents_that_fit == floor.tokens_that_fit == 1
    assert floor.nats == floor.attainable_nats == pytest.approx(float(data.val_doc_nats.sum()))
    scored = evaluate(oracle, data, context_length=64, batch_size=16)
    assert scored.window_nats.sum() == pytest.approx(floor.nats, rel=1e-6)
    assert scored.window_nats == pytest.approx(np.asarray(data.val_doc_nats), abs=1e-5), "each document's own"
    assert floor_gaps(data, scored, 64)["floor_gap"] == pytest.approx(0, abs=1e-6)
    cut = evaluate(oracle, replace(data, val_doc_offsets=data.val_doc_offsets[:0]), context_length=64)
    assert cut.window_nats.sum() > 1.1 * floor.nats


def test_documents_that_do_not_fit_cost_more_than_the_floor(world: tuple[Oracle, PreparedData]) -> None:
    oracle, data = world
    floor = text_floor(data, 5, "val")
    assert floor is not None and floor.attainable_nats is None and floor.documents_that_fit == 0
    scored = evaluate(oracle, data, context_length=5)
    cut = evaluate(oracle, replace(data, val_doc_offsets=data.val_doc_offsets[:0]), context_length=5)
    assert floor.nats * 1.01 < scored.window_nats.sum() < cut.window_nats.sum()
    gaps = floor_gaps(data, scored, 5)
    assert gaps["attainable_floor"] is None and gaps["floor"] == pytest.approx(floor.nats / len(data.val_ids))


def test_shares_that_fit_are_of_documents_and_of_tokens() -> None:
    floor = floor_of(np.array([1.0, 2.0, 4.0]), np.array([0, 5, 10, 30], dtype=np.uint64), 5)
    assert (floor.nats, floor.attainable_nats) == (7.0, None)
    assert (floor.documents_that_fit, floor.tokens_that_fit) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


@pytest.mark.parametrize("config", [TINY_KIMI, TINY_GPT], ids=["nanokimi", "nanogpt"])
def test_neither_batch_size_nor_other_documents_change_a_documents_score(
    config: object, filler: PreparedData
) -> None:
    generator = np.random.default_rng(0)
    told = [np.append(generator.integers(0, 60, n), 60) for n in generator.integers(0, 45, 30)]

    def of(order: list[int]) -> PreparedData:
        return replace(
            filler,
            train_ids=np.array([60], dtype=np.uint16),
            val_ids=np.concatenate([told[i] for i in order]).astype(np.uint16),
            val_doc_offsets=np.cumsum([0, *(len(told[i]) for i in order)]).astype(np.uint64),
        )

    model = build_model(config, seed=1)  # type: ignore[arg-type]
    data = of([*range(30)])
    scores = [evaluate(model, data, context_length=16, batch_size=n) for n in (1, 5, 64)]
    for other in scores[1:]:
        assert other.window_nats == pytest.approx(scores[0].window_nats, abs=1e-4)
        assert other.loss_by_position == pytest.approx(scores[0].loss_by_position, abs=1e-5)
    assert scores[0].window_tokens.sum() == len(data.val_ids) and len(scores[0].loss_by_position) == 16
    backwards = of([*range(29, -1, -1)])
    turned = evaluate(model, backwards, context_length=16, batch_size=5)
    one_by_one = by_document(scores[0].window_nats, data)
    assert by_document(turned.window_nats, backwards)[::-1] == pytest.approx(one_by_one, abs=1e-4)


def by_document(window_nats: np.ndarray, data: PreparedData) -> np.ndarray:
    """Nats of each document, over all its windows of 16."""
    starts = scored_windows(len(data.val_ids), data.val_doc_offsets, 16).starts
    owners = np.searchsorted(data.val_doc_offsets.astype(np.int64), starts, side="right") - 1
    return np.bincount(owners, weights=window_nats)


@pytest.fixture(scope="module")
def short_tales(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("short")
    dataset = DatasetConfig(
        path="tales-short:3", tokenizer="bpe", vocab_size=1536, characters=1_000_000, cache=str(folder / "c")
    )
    return prepare(dataset, folder / "data", context_length=128)


def test_short_tales_fit_into_128_tokens_so_their_floor_can_be_reached(short_tales: PreparedData) -> None:
    for part in ("val", "test"):
        floor = text_floor(short_tales, 128, part)
        known = short_tales.metadata[f"{part}_floor_nats"]
        assert floor is not None and floor.attainable_nats == floor.nats == pytest.approx(known)
    assert int(np.diff(short_tales.train_doc_offsets.astype(np.int64)).max()) <= 128
    texts = short_tales.tokenizer.decode(short_tales.test_ids.tolist()).split(tales.END_OF_TEXT)
    assert floor.nats == pytest.approx(
        -sum(tales.score(text, "tales-short") for text in texts[:-1]), rel=1e-9
    )


def test_the_first_token_of_each_document_is_predicted_from_end_of_text(short_tales: PreparedData) -> None:
    data, end = short_tales, short_tales.tokenizer.end_of_text_id
    seen = 0
    for batch in iterate_validation(data.train_ids, data.val_ids, 128, 8, data.val_doc_offsets):
        assert (batch.inputs[:, 0] == end).all()
        assert (np.where(batch.counts, batch.inputs, -1)[:, 1:] != end).all(), "and no other token is"
        seen += len(batch.numbers)
    assert seen == data.metadata["val_documents"]
