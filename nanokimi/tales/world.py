"""What a story is made of: words in groups, the facts told so far, and the steps of the program that tells it.

One program of steps tells a tale. Some steps are free (a Choice between wordings, a Bind of a new fact), the others
follow from what was told before. Each step tells a Driver what happens. The drivers (sampler.py, parser.py, probing.py)
sample, parse or examine the same program, so they always agree.

Every choice shows in the text at once: `leads` lists the texts with which a step can begin, and at each choice no lead
is a prefix of another. The text so far therefore determines every choice.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, TypeAlias

Lead: TypeAlias = "tuple[Text | Surface, float]"
"""A text with which a step can begin, and the log-probability that it begins so."""
LONG_ENOUGH = 12
"""A shorter text (in characters) before a choice is not a lead by itself: the leads of the choice are added to it."""
PRONOUNS = {
    "he": ("he", "she", "they", "it"),
    "him": ("him", "her", "them", "it"),
    "his": ("his", "her", "their", "its"),
    "himself": ("himself", "herself", "themselves", "itself"),
    "was": ("was", "were"),
}
"""The forms that depend on who is meant, and the words that a mistake could put there."""


@dataclass(eq=False)
class Entity:
    """One entry of a word group: a name, a colour, a hiding place; `forms[""]` is how it is usually written."""

    kind: str
    forms: dict[str, str]
    _words: dict[str, dict[str, str]] = field(default_factory=dict)

    def words(self, role: str) -> dict[str, str]:
        """Return the words that the entity contributes to a story in which it plays `role`."""
        if role not in self._words:
            words = {f"{role}.{form}" if form else role: text for form, text in self.forms.items()}
            capitals = {key[0].upper() + key[1:]: text[:1].upper() + text[1:] for key, text in words.items()}
            self._words[role] = words | capitals
        return self._words[role]


@dataclass(eq=False)
class Lexicon:
    """A group of entities that can fill the same slot, all equally likely."""

    name: str
    kind: str
    entities: tuple[Entity, ...]

    @cached_property
    def members(self) -> frozenset[Entity]:
        """The entities as a set, for membership tests."""
        return frozenset(self.entities)


@dataclass(frozen=True)
class Fact:
    """Something that was told; `role` is what or whom it is about: "hero", or "key@" (who holds the key)."""

    role: str
    kind: str
    value: str


class World:
    """The state of one story: the words that its slots stand for, who plays which role, and the facts in order."""

    def __init__(self) -> None:
        self.words: dict[str, str] = {}
        self.cast: dict[str, Entity] = {}
        self.used: set[Entity] = set()
        self.facts: list[Fact] = []

    def bind(self, role: str, entity: Entity) -> None:
        """Let a new entity play `role`."""
        self.used.add(entity)
        self.point(role, entity)

    def point(self, role: str, entity: Entity) -> None:
        """Let an entity of the story play `role`, as when a thing changes hands."""
        self.cast[role] = entity
        self.words.update(entity.words(role))
        self.facts.append(Fact(role, "holder" if role[-1] == "@" else entity.kind, entity.forms[""]))

    def free(self, lexicon: Lexicon) -> int:
        """Return how many entities of `lexicon` the story has not used."""
        return len(lexicon.entities) - sum(entity in lexicon.members for entity in self.used)


class Driver(Protocol):
    """What carries out the program of a story: samples it, parses with it, or examines it."""

    def say(self, text: Text, world: World) -> None:
        """The words of `text` come next."""

    def choose(self, choice: Choice, world: World) -> Option:
        """Take one of the options that the world allows."""

    def introduce(self, bind: Bind, world: World) -> Entity:
        """Take an entity that the story has not used, and say it."""


class Step(Protocol):
    """One step of the program."""

    def perform(self, world: World, driver: Driver) -> None:
        """Do the step."""

    def leads(self, world: World) -> Iterator[Lead]:
        """Yield every text with which the step can begin."""


@dataclass(frozen=True)
class Slot:
    """A place in a text for a word that is known: `hero.his` is the form `his` of whoever is the hero."""

    key: str

    @property
    def role(self) -> str:
        """Whose word it is."""
        role = self.key.split(".")[0]
        return role[0].lower() + role[1:]

    @property
    def form(self) -> str:
        """Which of the entity's forms it is."""
        return self.key.partition(".")[2]


class Text:
    """Words that follow from the state alone: literal text with slots."""

    def __init__(self, items: Sequence[str | Slot]) -> None:
        self.items = tuple(items)
        self._pattern = "".join(
            item.replace("%", "%%") if isinstance(item, str) else f"%({item.key})s" for item in self.items
        )
        self._before: dict[Text, Text] = {}

    def fill(self, world: World) -> str:
        """Return the words."""
        return self._pattern % world.words

    def perform(self, world: World, driver: Driver) -> None:
        """Say it."""
        driver.say(self, world)

    def leads(self, world: World) -> Iterator[Lead]:
        """Yield the text itself."""
        yield self, 0.0

    def before(self, lead: Text | Surface) -> Text | Surface:
        """Return `lead` with this text before it."""
        if isinstance(lead, Surface):
            return replace(lead, before=Text([*self.items, *(lead.before.items if lead.before else ())]))
        if lead not in self._before:
            self._before[lead] = Text([*self.items, *lead.items])
        return self._before[lead]

    @property
    def is_short(self) -> bool:
        """Return whether it may be too short to tell options apart."""
        return sum(1 if isinstance(item, Slot) else len(item) for item in self.items) < LONG_ENOUGH


@dataclass(frozen=True)
class Surface:
    """The text with which a Bind would introduce one entity."""

    bind: Bind
    entity: Entity
    before: Text | None = None

    @property
    def items(self) -> tuple[str | Slot, ...]:
        """Its words and slots, as a Text has them."""
        return (*(self.before.items if self.before else ()), self.bind.surface(self.entity))

    def fill(self, world: World) -> str:
        """Return the words."""
        words = self.bind.surface(self.entity)
        return self.before.fill(world) + words if self.before else words


@dataclass(frozen=True, eq=False)
class Bind:
    """Introduce a new entity of a lexicon, in one of its forms: a name, say, or "an orange"."""

    role: str
    form: str
    lexicon: Lexicon
    capital: bool = False

    def surface(self, entity: Entity) -> str:
        """Return how `entity` is written here."""
        words = entity.forms[self.form]
        return words[0].upper() + words[1:] if self.capital else words

    def perform(self, world: World, driver: Driver) -> None:
        """Take an entity, say it and remember it."""
        world.bind(self.role, driver.introduce(self, world))

    def leads(self, world: World) -> Iterator[Lead]:
        """Yield the surface of every entity that is still free."""
        log_probability = -math.log(world.free(self.lexicon))
        for entity in self.lexicon.entities:
            if entity not in world.used:
                yield Surface(self, entity), log_probability


@dataclass(frozen=True)
class Mark:
    """Remember a word that later choices ask for, as in `thread:errand`; nothing is said."""

    key: str
    value: str

    def perform(self, world: World, driver: Driver) -> None:
        """Remember it."""
        world.words[self.key] = self.value

    def leads(self, world: World) -> Iterator[Lead]:
        """Refuse: it has no text, so an option cannot begin with it."""
        raise AssertionError(f"an option begins with the mark {self.key}")


@dataclass(frozen=True)
class Point:
    """Let `role` mean somebody who is already in the story, or two of them together; nothing is said."""

    role: str
    targets: tuple[str, ...]

    def perform(self, world: World, driver: Driver) -> None:
        """Remember who is meant."""
        who = [world.cast[target] for target in self.targets]
        world.point(self.role, who[0] if len(who) == 1 else _together(who))

    def leads(self, world: World) -> Iterator[Lead]:
        """Refuse: it has no text, so an option cannot begin with it."""
        raise AssertionError(f"an option begins by pointing {self.role}")


@dataclass(frozen=True, eq=False)
class Option:
    """One way to go on; `needs` are the marks without which it is not open ("-" means not set)."""

    weight: float
    needs: tuple[tuple[str, str], ...]
    steps: tuple[Step, ...]

    def is_open(self, world: World) -> bool:
        """Say whether the world allows it."""
        return all(world.words.get(key, "-") in value.split("/") for key, value in self.needs)

    def leads(self, world: World) -> Iterator[Lead]:
        """Yield every text with which it can begin."""
        first = self.steps[0]
        if isinstance(first, Text) and first.is_short and len(self.steps) > 1:
            for lead, log_probability in self.steps[1].leads(world):
                yield first.before(lead), log_probability
        else:
            yield from first.leads(world)


class Menu:
    """Open options with their probabilities."""

    def __init__(self, options: Sequence[Option]) -> None:
        self.options = tuple(options)
        self.cumulative = [sum(option.weight for option in options[: i + 1]) for i in range(len(options))]
        self.total = self.cumulative[-1]
        self.log_probabilities = {option: math.log(option.weight / self.total) for option in options}

    def at(self, fraction: float) -> Option:
        """Return the option at `fraction` (0 to 1, without 1) of the total weight."""
        return self.options[bisect_right(self.cumulative, fraction * self.total, 0, len(self.options) - 1)]


class Choice:
    """Several ways to go on, of which the world may close some."""

    def __init__(self, where: str, options: Sequence[Option]) -> None:
        self.where = where
        self.options = list(options)
        self._menus: dict[tuple[bool, ...], Menu] = {}

    @cached_property
    def _whole(self) -> Menu | None:
        return None if any(option.needs for option in self.options) else Menu(self.options)

    def menu(self, world: World) -> Menu:
        """Return the options that are open now."""
        if self._whole is not None:
            return self._whole
        open_now = tuple([option.is_open(world) for option in self.options])
        if open_now not in self._menus:
            taken = [option for option, is_open in zip(self.options, open_now, strict=True) if is_open]
            assert taken, f"{self.where}: no option is open"
            self._menus[open_now] = Menu(taken)
        return self._menus[open_now]

    def perform(self, world: World, driver: Driver) -> None:
        """Take an option and do its steps."""
        for step in driver.choose(self, world).steps:
            step.perform(world, driver)

    def leads(self, world: World) -> Iterator[Lead]:
        """Yield every text with which an open option can begin."""
        menu = self.menu(world)
        for option in menu.options:
            for lead, log_probability in option.leads(world):
                yield lead, log_probability + menu.log_probabilities[option]


def _together(who: Sequence[Entity]) -> Entity:
    """Return two characters as one entity, for sentences about both."""
    name = " and ".join(entity.forms[""] for entity in who)
    return Entity("name", {"": name, **_THEY})


_THEY = {"he": "they", "him": "them", "his": "their", "himself": "themselves", "was": "were"}
