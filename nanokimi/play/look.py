"""What the Look inside tab computes: views of a text, with the experts' favourite tokens and maps of attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nanokimi.config.checks import require
from nanokimi.errors import UserError
from nanokimi.inside import Favourites, Subject, attention_maps, favourites, subject_of, write_and_look
from nanokimi.inside.attention import layers_shown
from nanokimi.inside.page import fitted, page
from nanokimi.inside.subject import blocks_of
from nanokimi.inside.view import View, Wanted
from nanokimi.play.asked import Asked, settings_for, whole
from nanokimi.play.models import Player

MOST_TOKENS = 500
"""A text to look at; a page of it opens in a second."""
NONE = "none"
MOST_MODELS = 4
READ = 4
"""Tokens that a module of the user's reads to show how many maps it has."""
NO_MAP = "Not computed: choose a layer under \u201cAttention map\u201d and press Look again."


class Inspector:
    """Looks into models, and keeps what a model's experts like, which takes longest."""

    def __init__(self, players: dict[str, Player]) -> None:
        self.subjects = {name: subject_of(player.run) for name, player in players.items()}
        self.sizes = {name: map_sizes(subject) for name, subject in self.subjects.items()}
        """Layers and heads of each model's maps of attention."""
        self.liked: dict[str, Favourites | None] = {}

    def prepare(self, player: Player) -> None:
        """Find out what a model's experts like, if that has not been done. Runs in the desk's thread."""
        if player.name not in self.liked:
            self.liked[player.name] = favourites(self.subjects[player.name])

    def page(self, players: Sequence[Player], asked: Asked, wanted: Wanted | None) -> str:
        """The page of one or several models' views of what they write. Runs in the desk's thread.

        Raises UserError for a prompt or a layer that does not fit a model.
        """
        views = []
        for player in players:
            subject = self.subjects[player.name]
            found = write_and_look(subject, asked.prompt, settings_for(player, asked))
            self.prepare(player)
            views.append(View(found, self.liked[player.name]))
        if wanted is None:
            return page([replace(view, maps_note=NO_MAP) for view in views])
        return page(self._with_maps(players, views, wanted))

    def _with_maps(self, players: Sequence[Player], views: Sequence[View], wanted: Wanted) -> list[View]:
        """The views with the wanted map, where a model has it; the list offers those of the model with most layers.

        What has no weights over tokens says so. Raises UserError if no model has such a layer and head.
        """
        able = [self.has_map(player.name, wanted) for player in players]
        if not any(able):
            able = [True] * len(players)
        pairs = [
            (view, self.subjects[player.name])
            for player, view, one in zip(players, views, able, strict=True)
            if one
        ]
        found = iter(fitted(pairs, wanted, must_show=False))
        return [
            next(found) if one else replace(view, maps_note=without_map(*self.sizes[player.name]))
            for player, view, one in zip(players, views, able, strict=True)
        ]

    def has_map(self, name: str, wanted: Wanted) -> bool:
        """Whether a model has the layer and head of a map."""
        layers, heads = self.sizes[name]
        return (wanted.layer or 0) < layers and (wanted.head or 0) < heads

    @property
    def most_maps(self) -> tuple[int, int]:
        """The most layers and heads of any of the models."""
        layers, heads = zip(*self.sizes.values(), strict=True)
        return max(layers), max(heads)


def require_lookable(players: Sequence[Player], asked: Asked) -> None:
    """Raises UserError for more than a page can show."""
    require(
        len(players) <= MOST_MODELS,
        f"{len(players)} models are chosen: look into at most {MOST_MODELS} at once.",
    )
    require(
        asked.tokens <= MOST_TOKENS,
        f"The length is {asked.tokens}: the inside view shows at most {MOST_TOKENS} tokens.",
    )


def wanted_maps(layer: Any, head: Any) -> Wanted | None:
    """Which map of attention is asked for; None: none. Raises UserError for something else than a number."""
    if layer in (None, "", NONE):
        return None
    try:
        return Wanted(whole("layer", int(str(layer))), None if head in (None, "", "all") else int(str(head)))
    except ValueError:
        raise UserError("The layer and the head of a map are numbers, counted from 0.") from None


def map_sizes(subject: Subject) -> tuple[int, int]:
    """The layers and heads whose maps can be asked for; of a module of the user's, those of the calls that it makes."""
    config = subject.model.config
    if blocks_of(subject.model):
        return int(config.num_hidden_layers), int(config.num_attention_heads)
    ids = [0] * min(READ, subject.context_length)
    layers = layers_shown(subject, ids)
    found = attention_maps(subject, ids, 0) if layers else None
    return layers, found[0].heads if found else 0


def without_map(layers: int, heads: int) -> str:
    """The note in the place of a map that a model does not have."""
    if not layers:
        return "This model shows no maps of attention."
    return f"This model has no such map: its layers are 0 to {layers - 1}, its heads 0 to {heads - 1}."
