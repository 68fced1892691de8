"""The least loss that can be expected of any model, and of a model that sees no more than its window.

If a text comes from a world that knows its probabilities (tales), its negative log-probability is a floor: no
model can be expected to have a lower loss, whatever its context. A model that reads each document from its
beginning can reach the floor, because the world itself is such a model. A model that sees a document in pieces
cannot, because it has to guess again what was told before each piece. How much that costs is not known exactly,
so it is not computed here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nanokimi.data.store import PreparedData


@dataclass(frozen=True)
class Floor:
    """The floor of a text, for windows of one length."""

    nats: float
    """Total negative log-probability of the documents."""
    attainable_nats: float | None
    """What a model with these windows can be expected to reach: `nats` if all documents fit, else None (unknown)."""
    documents_that_fit: float
    """Share of the documents that are scored in one window, from their first token."""
    tokens_that_fit: float
    """Share of the tokens that are in such documents, end-of-text included."""


def text_floor(data: PreparedData, context_length: int, part: str = "test") -> Floor | None:
    """The floor of a part, val or test; None if its probability is unknown."""
    nats = data.val_doc_nats if part == "val" else data.test_doc_nats
    if nats is None:
        return None
    return floor_of(np.asarray(nats), data.scored(part).doc_offsets, context_length)


def floors(data: PreparedData, context_length: int, part: str = "test") -> dict[str, float | None]:
    """The floor and the attainable floor of a part, in nats per token; None where unknown."""
    floor = text_floor(data, context_length, part)
    if floor is None:
        return {"floor": None, "attainable_floor": None}
    tokens = len(data.scored(part).ids)
    # in a mixture a model also has to find out which world a document is from
    attainable = None if data.sources else floor.attainable_nats
    return {
        "floor": floor.nats / tokens,
        "attainable_floor": None if attainable is None else attainable / tokens,
    }


def floors_by_source(data: PreparedData, part: str = "test") -> dict[str, float]:
    """The floor of each text of a mixture, in nats per token; empty if there is one text or one has no known floor."""
    nats, offsets = data.val_doc_nats if part == "val" else data.test_doc_nats, data.scored(part).doc_offsets
    if nats is None or not data.sources:
        return {}
    documents = np.cumsum([0, *(one[f"{part}_documents"] for one in data.sources)])
    return {
        one["name"]: float(nats[begin:end].sum()) / int(offsets[end] - offsets[begin])
        for one, begin, end in zip(data.sources, documents, documents[1:], strict=False)
    }


def floor_of(doc_nats: np.ndarray, doc_offsets: np.ndarray, context_length: int) -> Floor:
    """The floor of documents with these negative log-probabilities and offsets."""
    lengths = np.diff(doc_offsets.astype(np.int64))
    fits = lengths <= context_length
    nats = float(doc_nats.sum())
    return Floor(
        nats=nats,
        attainable_nats=nats if fits.all() else None,
        documents_that_fit=float(fits.mean()),
        tokens_that_fit=float(lengths[fits].sum() / lengths.sum()),
    )
