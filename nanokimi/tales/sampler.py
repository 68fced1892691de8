"""Tell stories: story `index` of `seed` is a pure function of (VERSION, seed, index), the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random

from nanokimi.tales.notation import Compiler, read_lexicons
from nanokimi.tales.plots import SOURCES
from nanokimi.tales.short import SHORT, SHORT_LEXICONS
from nanokimi.tales.thesaurus import THESAURUS
from nanokimi.tales.words import LEXICONS
from nanokimi.tales.world import Bind, Choice, Entity, Fact, Lexicon, Option, Text, World

TALES, SHORT_TALES = "tales", "tales-short"
WORLDS = (TALES, SHORT_TALES)
"""The worlds by name, each with its own words and rules, and so with its own stories and probabilities."""
VERSION = 2
"""Raise it whenever any story changes."""
END_OF_TEXT = "<|endoftext|>"
"""Stands on a line of its own between stories."""
SEPARATOR = END_OF_TEXT + "\n"


@dataclass(frozen=True)
class Story:
    """A story, the natural logarithm of its exact probability, and what it told, in order."""

    text: str
    log_probability: float
    facts: tuple[Fact, ...]


def rules(name: str = TALES) -> dict[str, Choice]:
    """Return a world's rules by name; they are read from the notation once, in about a tenth of a second."""
    return _rules(name)


@cache  # around a function without defaults, so that rules() and rules(TALES) share an entry
def _rules(name: str) -> dict[str, Choice]:
    compiler = Compiler(lexicons(name), THESAURUS if name == TALES else "")
    for source in SOURCES if name == TALES else (SHORT,):
        compiler.add(source)
    compiler.check()
    return compiler.rules


def program(name: str = TALES) -> Choice:
    """Return the steps that tell one story of a world."""
    return rules(name)["story"]


def lexicons(name: str = TALES) -> dict[str, Lexicon]:
    """Return a world's word groups by name."""
    return _lexicons(name)


@cache
def _lexicons(name: str) -> dict[str, Lexicon]:
    return read_lexicons({TALES: LEXICONS, SHORT_TALES: SHORT_LEXICONS}[name])


class Sampler:
    """The driver that makes up a story; `probability` is the exact probability of everything it chose."""

    def __init__(self, seed: int, index: int) -> None:
        if not (0 <= seed < 2**64 and 0 <= index < 2**64):
            raise ValueError(f"seed and index go from 0 to 2**64 - 1, not {seed} and {index}")
        # Random.random() gives the same sequence in every version and on every machine; its other methods may not.
        self._random = Random(VERSION << 128 | seed << 64 | index).random
        self.parts: list[str] = []
        self.log_probability = 0.0

    def say(self, text: Text, world: World) -> None:
        """Write the words down."""
        self.parts.append(text.fill(world))

    def choose(self, choice: Choice, world: World) -> Option:
        """Draw one of the open options by its weight."""
        menu = choice.menu(world)
        option = menu.at(self._random())
        self.log_probability += menu.log_probabilities[option]
        return option

    def introduce(self, bind: Bind, world: World) -> Entity:
        """Draw an unused entity: all are equally likely, so drawing again after a used one is exact."""
        entities = bind.lexicon.entities
        self.log_probability -= math.log(world.free(bind.lexicon))
        while (entity := entities[int(self._random() * len(entities))]) in world.used:
            pass
        self.parts.append(bind.surface(entity))
        return entity


def tell(seed: int, index: int, name: str = TALES) -> Story:
    """Return story `index` of `seed` in the world `name`; its text ends with a line end."""
    sampler, world = Sampler(seed, index), World()
    program(name).perform(world, sampler)
    return Story("".join(sampler.parts) + "\n", sampler.log_probability, tuple(world.facts))


def iterate_stories(seed: int, start: int = 0, name: str = TALES) -> Iterator[Story]:
    """Yield story `start` of `seed`, and the next, and so on for ever."""
    index = start
    while True:
        yield tell(seed, index, name)
        index += 1


def generate_text(seed: int, *, characters: int, name: str = TALES) -> str:
    """Return the first stories of `seed`, with a separator between two, of at least so many `characters`."""
    stories: list[str] = []
    length = -len(SEPARATOR)
    for story in iterate_stories(seed, name=name):
        stories.append(story.text)
        length += len(story.text) + len(SEPARATOR)
        if length >= characters:
            break
    return SEPARATOR.join(stories)
