"""Parse stories: follow a text through the program, add up its exact log-probability, or say where it goes wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nanokimi.tales.sampler import END_OF_TEXT, SEPARATOR, TALES, lexicons, program
from nanokimi.tales.world import PRONOUNS, Bind, Choice, Entity, Option, Slot, Surface, Text, World


class NotATale(ValueError):
    """The text is not a tale from `position` on, for `reason`; `kind` is "end", "grammar" or a kind of fact."""

    def __init__(self, position: int, reason: str, kind: str) -> None:
        super().__init__(f"not a tale from character {position} on: {reason}")
        self.position, self.reason, self.kind = position, reason, kind


@dataclass(frozen=True)
class Judgement:
    """What the reader says of a text.

    `complete`: whole stories. `consistent`: no fact, name or pronoun contradicts what was told (as far as the text
    could be read). `grammatical`: no error of another kind. A text that merely stops early is both, but not complete.
    """

    grammatical: bool
    consistent: bool
    complete: bool
    characters_ok: int
    first_error: str | None
    words: int


class Reader:
    """The driver that follows a text: at each choice exactly one lead fits, or the text is not a tale."""

    def __init__(self, text: str, position: int = 0, name: str = TALES) -> None:
        self.text, self.position, self.name = text, position, name
        self.log_probability = 0.0

    def say(self, text: Text, world: World) -> None:
        """Check that the text goes on with these words."""
        words = text.fill(world)
        if not self.text.startswith(words, self.position):
            raise self._error([text], [], world)
        self.position += len(words)

    def choose(self, choice: Choice, world: World) -> Option:
        """Return the one option with a lead that matches the text here."""
        menu = choice.menu(world)
        for option in menu.options:
            for lead, _ in option.leads(world):
                if self.text.startswith(lead.fill(world), self.position):
                    self.log_probability += menu.log_probabilities[option]
                    return option
        raise self._error([lead for lead, _ in choice.leads(world)], _closed_leads(choice, world), world)

    def introduce(self, bind: Bind, world: World) -> Entity:
        """Return the one entity that is named here."""
        for lead, log_probability in bind.leads(world):
            if self.text.startswith(words := lead.fill(world), self.position):
                assert isinstance(lead, Surface)
                self.position += len(words)
                self.log_probability += log_probability
                return lead.entity
        used = [Surface(bind, entity) for entity in bind.lexicon.entities if entity in world.used]
        raise self._error([lead for lead, _ in bind.leads(world)], used, world)

    def _error(
        self, leads: Sequence[Text | Surface], closed: Sequence[Text | Surface], world: World
    ) -> NotATale:
        """Say why none of `leads` matches here: the text ends, a fact is wrong (or used up: `closed`), or neither."""
        reach = max(self.position + _agreement(lead.fill(world), self.text, self.position) for lead in leads)
        if reach == len(self.text):
            return NotATale(reach, "the text ends too early", "end")
        wrong = [fault for lead in leads if (fault := self._wrong_slot(lead, world))]
        if wrong:
            place, kind, expected, found = max(wrong)
            return NotATale(place, f"{kind}: expected '{expected}', found '{found}'", kind)
        for lead in closed:
            if words := _filled(lead, world):
                if self.text.startswith(words, self.position):
                    kind = lead.entity.kind if isinstance(lead, Surface) else "event"
                    reason = f"{kind}: '{words[:30]}' contradicts what was told"
                    return NotATale(self.position, reason, kind)
        expected = max(
            (lead.fill(world) for lead in leads),
            key=lambda words: _agreement(words, self.text, self.position),
        )
        rest = expected[reach - self.position :][:20]
        return NotATale(
            reach, f"grammar: expected '{rest}', found '{self.text[reach : reach + 20]}'", "grammar"
        )

    def _wrong_slot(self, lead: Text | Surface, world: World) -> tuple[int, str, str, str] | None:
        """Return (place, kind, expected, found) if the text matches `lead` except for the word in one slot."""
        place = self.position
        for item in lead.items:
            words = world.words[item.key] if isinstance(item, Slot) else item
            if self.text.startswith(words, place):
                place += len(words)
                continue
            if isinstance(item, Slot):
                kind, others = fillers(item, world, self.name)
                for other in sorted(others, key=len, reverse=True):
                    end = place + len(other)
                    if self.text.startswith(other, place) and not self.text[end : end + 1].isalnum():
                        return place, kind, words, other
            return None
        return None


def fillers(slot: Slot, world: World, name: str = TALES) -> tuple[str, set[str]]:
    """Return the kind of fact that `slot` recalls and every word of that kind, other than the right one."""
    right, form, entity = world.words[slot.key], slot.form, world.cast[slot.role]
    if form in PRONOUNS:
        kind, words = "pronoun", set(PRONOUNS[form])
    else:
        kind = "holder" if slot.role[-1] == "@" else entity.kind
        words = {
            other.forms[form]
            for lexicon in lexicons(name).values()
            if lexicon.kind == entity.kind
            for other in lexicon.entities
            if form in other.forms
        }
    if slot.key[0].isupper():
        words = {word[:1].upper() + word[1:] for word in words}
    return kind, words - {right}


def _agreement(words: str, text: str, position: int) -> int:
    """Return how many characters of `words` agree with `text` at `position`."""
    if text.startswith(words, position):
        return len(words)
    pairs = zip(words, text[position : position + len(words)], strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), len(text) - position)


def _closed_leads(choice: Choice, world: World) -> list[Text | Surface]:
    """Return the leads of the options that the world does not allow now."""
    closed = [option for option in choice.options if not option.is_open(world)]
    return [lead for option in closed if isinstance(lead := option.steps[0], Text)]


def _filled(lead: Text | Surface, world: World) -> str:
    """Return the words of a lead, or "" if it names something that is not in this story."""
    if isinstance(lead, Text) and any(
        isinstance(item, Slot) and item.key not in world.words for item in lead.items
    ):
        return ""
    return lead.fill(world)


def read_story(text: str, position: int = 0, name: str = TALES) -> tuple[int, float]:
    """Read one story from `position` on; return where it ends and its log-probability."""
    reader = Reader(text, position, name)
    program(name).perform(World(), reader)
    if not text.startswith("\n", reader.position):
        if reader.position == len(text):
            raise NotATale(reader.position, "the text ends too early", "end")
        raise NotATale(reader.position, "grammar: the story should end here", "grammar")
    return reader.position + 1, reader.log_probability


def _read(text: str, name: str) -> tuple[list[int], list[float], NotATale | None]:
    """Read all stories of a text; return where each ended, their log-probabilities, and what went wrong."""
    ends: list[int] = []
    log_probabilities: list[float] = []
    position = 0
    try:
        while not ends or position < len(text):
            position, log_probability = read_story(text, position, name)
            ends.append(position)
            log_probabilities.append(log_probability)
            if not text.startswith(SEPARATOR, position) and position < len(text):
                if SEPARATOR.startswith(text[position:]) and text[position:] != END_OF_TEXT:
                    raise NotATale(len(text), "the text ends too early", "end")
                if text[position:] != END_OF_TEXT:
                    raise NotATale(
                        position, f"grammar: expected '{END_OF_TEXT}' on a line of its own", "grammar"
                    )
            position = min(position + len(SEPARATOR), len(text))
    except NotATale as error:
        return ends, log_probabilities, error
    return ends, log_probabilities, None


def score(text: str, name: str = TALES) -> float:
    """Return the natural logarithm of the probability of a story, or of several with separators between them.

    A separator has probability 1: where a story ends follows from its words. A text may end with one. Raises
    NotATale, with `position` and `reason`, if the generator can never say `text`.
    """
    _, log_probabilities, error = _read(text, name)
    if error is not None:
        raise error
    return math.fsum(log_probabilities)


def story_scores(text: str, name: str = TALES) -> list[float]:
    """Return the log-probability of each story of a text with separators; raises NotATale as `score` does."""
    _, log_probabilities, error = _read(text, name)
    if error is not None:
        raise error
    return log_probabilities


def judge(text: str, name: str = TALES) -> Judgement:
    """Say whether `text` is grammatical, consistent and complete, and where it first goes wrong."""
    _, _, error = _read(text, name)
    return Judgement(
        grammatical=error is None or error.kind != "grammar",
        consistent=error is None or error.kind in ("grammar", "end"),
        complete=error is None,
        characters_ok=len(text) if error is None else error.position,
        first_error=None if error is None else str(error),
        words=len(text.replace(END_OF_TEXT, " ").split()),
    )


def continuations(text: str, name: str = TALES) -> list[tuple[str, float]]:
    """Return what can come next after `text`, which stops early, with log-probabilities, up to the next choice.

    If the text stops within a choice, only the options that still fit are listed: the rest of each, renormalised.
    """
    explorer = _Explorer(text, name=name)
    try:
        program(name).perform(World(), explorer)
    except _Found as found:
        total = math.log(math.fsum(math.exp(log) for _, log in found.args[0]))
        return [(words, log - total) for words, log in found.args[0]]
    return [("\n", 0.0)]


class _Found(Exception):
    """Raised by the explorer to leave the program with what it was looking for."""


class _Explorer(Reader):
    """A reader that stops where the text ends and tells what could follow."""

    def say(self, text: Text, world: World) -> None:
        """Read on, or stop within these words."""
        self._stop([(text.fill(world), 0.0)])
        super().say(text, world)

    def choose(self, choice: Choice, world: World) -> Option:
        """Read on, or stop at this choice."""
        self._stop([(lead.fill(world), log) for lead, log in choice.leads(world)])
        return super().choose(choice, world)

    def introduce(self, bind: Bind, world: World) -> Entity:
        """Read on, or stop at this new fact."""
        self._stop([(lead.fill(world), log) for lead, log in bind.leads(world)])
        return super().introduce(bind, world)

    def _stop(self, branches: list[tuple[str, float]]) -> None:
        told = self.text[self.position :]
        rests = [(words[len(told) :], log) for words, log in branches if words.startswith(told)]
        if rests and (len(told) == 0 or all(len(rest) > 0 for rest, _ in rests)):
            raise _Found(rests)
