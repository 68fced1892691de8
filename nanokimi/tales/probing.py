"""Probes: places in a story where one word follows from a fact told earlier, and what could wrongly stand there."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from random import Random

from nanokimi.tales.parser import fillers
from nanokimi.tales.sampler import TALES, Sampler, program
from nanokimi.tales.world import PRONOUNS, Bind, Choice, Entity, Option, Slot, Text, World

MAX_ALTERNATIVES = 5


@dataclass(frozen=True)
class Probe:
    """A question to a model: after `prefix`, is `answer` likelier than each of `alternatives`?

    Answer and alternatives carry the space before them, if there is one. `kind` is the kind of fact ("name",
    "colour", "holder", ...) and `distance_words` counts the words since the fact was last told.
    """

    prefix: str
    answer: str
    alternatives: tuple[str, ...]
    distance_words: int
    kind: str


class _Prober(Sampler):
    """A sampler that notes each slot that only one word can fill."""

    def __init__(self, seed: int, index: int, name: str) -> None:
        super().__init__(seed, index)
        self.name = name
        self.found: list[Probe] = []
        self._pick = Random(index).random
        self._length = 0
        self._open_until = 0
        self._told: dict[tuple[str, str], int] = {}

    def choose(self, choice: Choice, world: World) -> Option:
        """Take an option; words that it shares with another option are not probes."""
        option = super().choose(choice, world)
        mine = [lead for lead, _ in option.leads(world)]
        others = sorted(
            lead.fill(world)
            for other in choice.menu(world).options
            if other is not option
            for lead, _ in other.leads(world)
        )
        shared = max((_shared(lead.fill(world), others) for lead in mine), default=0)
        self._open_until = max(self._open_until, self._length + shared)
        return option

    def introduce(self, bind: Bind, world: World) -> Entity:
        """Say a new fact, which can be asked for from here on."""
        entity = super().introduce(bind, world)
        self._length += len(self.parts[-1])
        self._told[_topic(bind.role, bind.form, entity)] = self._words()
        return entity

    def say(self, text: Text, world: World) -> None:
        """Say the words one by one, and note each slot."""
        for item in text.items:
            if isinstance(item, Slot):
                self._note(item, world)
                self.parts.append(world.words[item.key])
            else:
                self.parts.append(item)
            self._length += len(self.parts[-1])

    def _note(self, slot: Slot, world: World) -> None:
        entity = world.cast[slot.role]
        topic = _topic(slot.role, slot.form, entity)
        told = self._told.get(topic) if slot.role[-1] != "@" else self._told.get(_topic("", "", entity))
        self._told[topic] = self._words()
        if told is None or slot.form in PRONOUNS or self._length <= self._open_until:
            return
        kind, wrong = fillers(slot, world, self.name)
        prefix, answer = "".join(self.parts), world.words[slot.key]
        alternatives = self._some(
            [word for word in sorted(wrong) if not _overlaps(word, answer)], world, slot
        )
        if not alternatives:
            return
        if prefix.endswith(" "):
            prefix, answer, alternatives = (
                prefix[:-1],
                " " + answer,
                tuple(" " + word for word in alternatives),
            )
        self.found.append(Probe(prefix, answer, alternatives, self._words() - told, kind))

    def _some(self, words: Sequence[str], world: World, slot: Slot) -> tuple[str, ...]:
        """Return a few of `words`: first those that the story has used (the most confusing), then random ones."""
        told = {entity.forms.get(slot.form) for entity in world.cast.values()}
        taken = [word for word in words if word in told][: MAX_ALTERNATIVES - 2]
        rest = [word for word in words if word not in taken]
        while rest and len(taken) < MAX_ALTERNATIVES:
            taken.append(rest.pop(int(self._pick() * len(rest))))
        return tuple(taken)

    def _words(self) -> int:
        return len("".join(self.parts).split())


def probes(seed: int, index: int, name: str = TALES) -> list[Probe]:
    """Return the probes of story `index` of `seed` in the world `name`, in the order of the text."""
    prober = _Prober(seed, index, name)
    program(name).perform(World(), prober)
    return prober.found


def _topic(role: str, form: str, entity: Entity) -> tuple[str, str]:
    """What a word is about: a name means the same character in every role, other facts belong to their role."""
    return (entity.forms[""], "name") if entity.kind in ("name", "pet") else (role, "fact")


def _shared(lead: str, others: Sequence[str]) -> int:
    """Return how many characters at its beginning `lead` has in common with one of the sorted `others`, at most."""
    at = bisect(others, lead)  # the most are shared with a neighbour in the sorted order
    return max((len(commonprefix([lead, other])) for other in others[max(at - 1, 0) : at + 1]), default=0)


def _overlaps(word: str, answer: str) -> bool:
    return word.startswith(answer) or answer.startswith(word)
