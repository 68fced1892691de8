"""What a visitor may ask for, checked before anything is computed. The numbers come from a browser, or from anyone."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nanokimi.config.checks import require, require_sampling
from nanokimi.errors import UserError
from nanokimi.generation.engine import Request
from nanokimi.generation.story import text_settings
from nanokimi.generation.text import TextSettings, requests_of
from nanokimi.play.models import Player
from nanokimi.pretrained import word_for

MOST_AT_ONCE = 8
"""Models that one visitor may let write at once."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one visitor may ask for, and how much is computed for all of them."""

    prompt_characters: int = 4000
    tokens: int = 1000
    at_once: int = 8
    """Texts in work, a token of each in turn."""
    queue: int = 128
    """Further texts that may wait."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A prompt and how to continue it."""

    prompt: str
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    tokens: int


def understand(
    limits: Limits, *, prompt: Any, temperature: Any, top_k: Any, top_p: Any, seed: Any, tokens: Any
) -> Asked:
    """The request in the form that can be served. A top-k of 0 or none, and a top-p of 1, mean that it is off.

    Raises UserError, which says what to change.
    """
    text = "" if prompt is None else str(prompt)
    require(text != "", "The prompt is empty: type at least one character, or choose one of the beginnings.")
    if len(text) > limits.prompt_characters:
        raise UserError(
            f"The prompt has {len(text):,} characters, and this page takes {limits.prompt_characters:,}: shorten it."
        )
    text = text.replace("\r\n", "\n")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError("The prompt holds half a character (a lone surrogate): type it again.") from None
    length = whole("length", tokens)
    require(1 <= length <= limits.tokens, f"The length is {length}: it must be 1 to {limits.tokens} tokens.")
    chosen_k = None if top_k is None else whole("top-k", top_k)
    share = number("top-p", top_p) if top_p is not None else None
    found = Asked(
        prompt=text,
        temperature=number("temperature", temperature),
        top_k=chosen_k or None,
        top_p=None if share == 1 else share,
        seed=whole("seed", seed),
        tokens=length,
    )
    require(0 <= found.seed < 2**63, f"The seed is {found.seed}: it must be at least 0 and below 2^63.")
    return found


def require_room(limits: Limits, models: int) -> None:
    """Raises UserError if the models cannot all write for one visitor, who would be refused whatever else goes on."""
    room, needed = limits.at_once + limits.queue, min(models, MOST_AT_ONCE)
    if room < needed:
        raise UserError(
            f"--at_once {limits.at_once} and --queue {limits.queue} leave room for {room} texts, and {needed} models "
            "may write for one visitor: raise one of them"
        )


def number(name: str, value: Any) -> float:
    """A finite number. Raises UserError for anything else."""
    try:
        if isinstance(value, bool | None):
            raise ValueError
        found = float(value)
        if not math.isfinite(found):
            raise ValueError
        return found
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"The {name} is {shown(value)}: give a number.") from None


def whole(name: str, value: Any) -> int:
    """A whole number; 3.0, which a browser sends for 3, is one. Raises UserError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) < 2**64:
            return value
        raise UserError(f"The {name} is too large: give a smaller whole number.")
    found = number(name, value)
    require(found.is_integer() and abs(found) < 2**64, f"The {name} is {shown(value)}: give a whole number.")
    return int(found)


def shown(value: Any) -> str:
    """A value as a message quotes it."""
    return "missing" if value is None else str(value)[:40]


def settings_for(player: Player, asked: Asked) -> TextSettings:
    """How a model continues the prompt: as asked, and what the page does not ask for as its run has it."""
    config = player.run.config
    sample = replace(
        config.sample,
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        max_new_tokens=asked.tokens,
    )
    return text_settings(replace(config, sample=sample, seed=asked.seed))


def request_for(player: Player, asked: Asked) -> Request:
    """The sequence to write. Raises UserError for a prompt that the model cannot encode, and for impossible numbers."""
    settings = settings_for(player, asked)
    require_sampling(settings.sampling)
    return requests_of(player.served.tokenizer, [asked.prompt], settings)[0]


def command_of(player: Player, asked: Asked) -> str:
    """The `nanokimi sample` that writes the same text."""
    vocab_size = player.run.model.config.vocab_size
    words = {
        "prompt": asked.prompt,
        "temperature": repr(asked.temperature),  # every digit, or another token may be drawn
        "top_k": str(asked.top_k or vocab_size),
        "top_p": repr(1.0 if asked.top_p is None else asked.top_p),
        "seed": str(asked.seed),
        "max_new_tokens": str(asked.tokens),
    }
    options = [f"--{name}={value}" for name, value in words.items()]
    return shlex.join(["nanokimi", "sample", word_for(player.run.folder), *options])


def chosen_players(players: dict[str, Player], names: Any) -> list[Player]:
    """The chosen models, in the order of the page. Raises UserError if none is chosen, or one that there is not."""
    wanted: Sequence[Any] = names if isinstance(names, list | tuple) else [names] if names else []
    unknown = [str(name)[:80] for name in wanted if name not in players]
    require(not unknown, f"There is no model '{unknown[0] if unknown else ''}' on this page.")
    found = [player for name, player in players.items() if name in wanted]
    require(bool(found), "No model is chosen: choose at least one.")
    require(len(found) <= MOST_AT_ONCE, f"{len(found)} models are chosen: choose at most {MOST_AT_ONCE}.")
    return found
