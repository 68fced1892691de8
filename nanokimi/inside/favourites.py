"""The experts' favourite tokens and their load over the validation text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from nanokimi.data.batches import iterate_validation, shared_out
from nanokimi.data.store import PreparedData
from nanokimi.errors import UserError
from nanokimi.inside.pieces import Pieces
from nanokimi.inside.routing import NOBODY, Choices, ExpertLayer, load_of, watched_routers
from nanokimi.inside.subject import Subject, reading
from nanokimi.measure.evaluate import Cancelled, windows_at_a_time

SAMPLE_TOKENS = 20_000
"""Validation tokens that are read unless another number is asked for."""
LEAST_COUNT = 10
"""A token must occur so often in the sample: what a rarer one does may be chance (not tuned)."""
MOST_SHOWN = 12


@dataclass(frozen=True)
class Favourite:
    """A token that an expert takes more often than it takes others."""

    id: int
    label: str
    lift: float
    """How many times as often the expert takes this token as it takes tokens on average."""
    taken: float
    """How often it took it; of experts that take every token, the sum of their shares."""
    seen: int
    """How often the token occurs in the sample."""


@dataclass(frozen=True)
class LayerFavourites:
    """The experts of one layer over the sample."""

    layer: int
    load: np.ndarray
    """Each expert's share of the choices, (E,); 1 / E each is balanced."""
    favourites: tuple[tuple[Favourite, ...], ...]
    """Of each expert, the one with the largest lift first."""


@dataclass(frozen=True)
class Favourites:
    """What experts do over a sample of the validation text."""

    tokens: int
    """How many tokens were read."""
    of: int
    """How many the validation text has."""
    layers: tuple[LayerFavourites, ...]


def favourites(
    subject: Subject, *, tokens: int = SAMPLE_TOKENS, cancelled: Callable[[], bool] | None = None
) -> Favourites | None:
    """Read some of the validation text and count which expert takes which token.

    That is its beginning, or, of a mixture, the beginning of each text's, in proportion to their validation tokens.

    Returns None for a model without experts, or whose routers do not tell. Raises UserError if the model came without
    its text; Cancelled once `cancelled`, which is called before each batch, returns True.
    """
    if subject.data is None:
        raise UserError(f"{subject.name} came without its validation text: name a run folder instead")
    data, context = subject.data, subject.context_length
    read: list[np.ndarray] = []
    with reading(subject.model) as device, watched_routers(subject.model) as routers:
        if not routers:
            return None
        for before, sample in _samples(data, tokens):
            # Not document by document, so that no token is read twice.
            for batch in iterate_validation(before, sample, context, windows_at_a_time(context)):
                if cancelled is not None and cancelled():
                    raise Cancelled
                subject.model(torch.from_numpy(batch.inputs).to(device))
                read.append(batch.inputs.reshape(-1))
    known = [router for router in routers if router.known]
    if not known:
        return None
    pieces, ids = Pieces(subject.tokenizer), np.concatenate(read)
    layers = tuple(layer_favourites(router, ids, pieces) for router in known)
    return Favourites(len(ids), len(data.val_ids), layers)


def _samples(data: PreparedData, tokens: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The tokens to read of each text, and what stands before them."""
    sizes = [one["val_tokens"] for one in data.sources] or [len(data.val_ids)]
    begin = 0
    for size, count in zip(sizes, shared_out(max(tokens, 1), sizes, sizes), strict=True):
        if count:
            before = data.val_ids[:begin] if begin else data.train_ids
            yield before, data.val_ids[begin : begin + count]
        begin += size


def layer_favourites(router: ExpertLayer, ids: np.ndarray, pieces: Pieces) -> LayerFavourites:
    """Load and favourites of one layer."""
    choices = Choices(
        np.concatenate([one.chosen_MK for one in router.passes]),
        np.concatenate([one.gates_MK for one in router.passes]),
    )
    tokens, places, seen = np.unique(ids, return_inverse=True, return_counts=True)
    used = choices.chosen_MK != NOBODY
    rows, _ = np.nonzero(used)
    weights = choices.gates_MK[used].astype(float) if router.weighed else None
    pairs = choices.chosen_MK[used].astype(np.int64) * len(tokens) + places[rows]
    taken_EU = np.bincount(pairs, weights=weights, minlength=router.experts * len(tokens))
    taken_EU = taken_EU.reshape(router.experts, len(tokens))
    share_E = taken_EU.sum(axis=1) / len(ids)
    lift_EU = taken_EU / seen / np.maximum(share_E, 1e-12)[:, None]
    lift_EU[:, seen < LEAST_COUNT] = 0.0
    found = []
    for lift_U, taken_U in zip(lift_EU, taken_EU, strict=True):
        best = np.lexsort((tokens, -taken_U, -lift_U))[:MOST_SHOWN]
        found.append(
            tuple(
                Favourite(
                    id=int(tokens[u]),
                    label=pieces.label(int(tokens[u])),
                    lift=float(lift_U[u]),
                    taken=float(taken_U[u]),
                    seen=int(seen[u]),
                )
                for u in best
                if lift_U[u] > 1
            )
        )
    return LayerFavourites(router.layer, load_of(router, choices), tuple(found))
