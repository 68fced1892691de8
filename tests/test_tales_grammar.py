"""The machinery under the stories: exact probabilities, one derivation per text, the notation."""

from __future__ import annotations

import math
from itertools import pairwise
from random import Random

import pytest

from nanokimi.tales import WORLDS, continuations, judge, score, tell
from nanokimi.tales.notation import Compiler, read_lexicons
from nanokimi.tales.parser import NotATale, Reader
from nanokimi.tales.sampler import Sampler, lexicons, program, rules
from nanokimi.tales.world import Bind, Choice, Entity, Option, Text, World

SEED = 23
PLOTS = (("tales", "plot"), ("tales", "fable"), ("tales-short", "story"))


class Recorder(Sampler):
    """Samples, writes down every choice, and asserts that no lead of a choice is a prefix of another."""

    def __init__(self, seed: int, index: int) -> None:
        super().__init__(seed, index)
        self.derivation: list[object] = []
        self.plot = ""

    def choose(self, choice: Choice, world: World) -> Option:
        leads = sorted(lead.fill(world) for lead, _ in choice.leads(world))
        for one, other in pairwise(leads):
            assert one and not other.startswith(one), f"{choice.where}: {one!r} begins {other!r}"
        total = math.fsum(math.exp(log) for _, log in choice.leads(world))
        assert total == pytest.approx(1, abs=1e-9)
        option = super().choose(choice, world)
        self.derivation.append(option)
        if any(choice is rules(name)[plot] for name, plot in PLOTS):
            self.plot = f"{choice.where} {choice.options.index(option)}"
        return option

    def introduce(self, bind: Bind, world: World) -> Entity:
        leads = sorted(lead.fill(world) for lead, _ in bind.leads(world))
        assert all(one and not other.startswith(one) for one, other in pairwise(leads)), bind.lexicon.name
        entity = super().introduce(bind, world)
        self.derivation.append(entity)
        return entity


class RecordingReader(Reader):
    """Reads and writes down every choice."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text, name=name)
        self.derivation: list[object] = []

    def choose(self, choice: Choice, world: World) -> Option:
        option = super().choose(choice, world)
        self.derivation.append(option)
        return option

    def introduce(self, bind: Bind, world: World) -> Entity:
        entity = super().introduce(bind, world)
        self.derivation.append(entity)
        return entity


def check_derivations(count: int, name: str = "tales") -> set[str]:
    plots = set()
    for index in range(count):
        recorder, world = Recorder(SEED, index), World()
        program(name).perform(world, recorder)
        story = tell(SEED, index, name)
        assert story.text == "".join(recorder.parts) + "\n"
        reader, read_world = RecordingReader(story.text, name), World()
        program(name).perform(read_world, reader)
        assert reader.derivation == recorder.derivation and read_world.facts == world.facts
        assert reader.position == len(story.text) - 1
        assert reader.log_probability == pytest.approx(recorder.log_probability, rel=1e-12)
        assert story.log_probability == recorder.log_probability
        assert index % 10 or score(story.text, name) == pytest.approx(story.log_probability, rel=1e-12)
        plots.add(recorder.plot)
    return plots


def test_the_reader_finds_the_derivation_that_told_the_story() -> None:
    """And with it: choices are prefix-free, so that no text has two derivations, and at least 40 plots are seen."""
    plots = check_derivations(250)
    assert len(plots) >= 40, plots


def test_the_reader_finds_the_derivation_of_short_tales() -> None:
    """Of every one of them: the plots of the smaller world are 14."""
    assert len(check_derivations(250, "tales-short")) == 14


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tales", "tales-short"])
def test_the_reader_finds_the_derivation_of_many_stories(name: str) -> None:
    check_derivations(10_000, name)


def test_one_changed_character_is_another_story_or_none() -> None:
    random = Random(1)
    readable = 0
    for index in range(80):
        story = tell(SEED, index)
        for _ in range(3):
            place = random.randrange(len(story.text) - 1)
            other = (
                story.text[:place] + random.choice("abcdefghijklmnopqrstuvwxyz .") + story.text[place + 1 :]
            )
            if other == story.text:
                continue
            verdict = judge(other)
            assert verdict.characters_ok >= 0 and (verdict.complete or verdict.characters_ok < len(other))
            readable += verdict.complete
    assert readable < 6  # a few changes do make another wording, each with its own derivation


def test_continuations_sum_to_one_and_chain_to_the_score() -> None:
    story = tell(SEED, 3)
    told, total = "", 0.0
    while told != story.text:
        branches = continuations(told)
        assert math.fsum(math.exp(log) for _, log in branches) == pytest.approx(1)
        fitting = [(words, log) for words, log in branches if story.text.startswith(told + words)]
        assert len(fitting) == 1
        told, total = told + fitting[0][0], total + fitting[0][1]
    assert total == pytest.approx(story.log_probability)


def test_continuations_of_short_tales_chain_to_the_score() -> None:
    for index in range(20):
        story, told, total = tell(SEED, index, "tales-short"), "", 0.0
        while told != story.text:
            branches = continuations(told, "tales-short")
            assert math.fsum(math.exp(log) for _, log in branches) == pytest.approx(1)
            fitting = [(words, log) for words, log in branches if story.text.startswith(told + words)]
            assert len(fitting) == 1
            told, total = told + fitting[0][0], total + fitting[0][1]
        assert total == pytest.approx(story.log_probability)


def test_continuations_renormalise_within_a_choice() -> None:
    whole = dict(continuations(""))
    begun = continuations("On the morning")
    assert begun and all("On the morning" + rest in whole for rest, _ in begun)
    assert math.fsum(math.exp(log) for _, log in begun) == pytest.approx(1)
    with pytest.raises(NotATale):
        continuations("The end")


GROUPS = """
= pet : pet
cat; sex=f
dog; sex=m
owl; sex=f; cry=hoo

= tint : colour
red
orange
"""

RULES = """
== story
- 3~ {C.a=tint} {a=pet} met {f=pet}[ at night|]. <end>
- Nobody came[, and {b=pet} slept {!mood:sad}|]. <end>

== end
- ?mood:sad It cried.
- ?mood:- The [end|2~last]. Pick one.
"""


def toy() -> Choice:
    compiler = Compiler(read_lexicons(GROUPS))
    compiler.add(RULES)
    compiler.check()
    return compiler.rule("story")


class Forced(Sampler):
    """Takes the choices it is given, then the first of each, and remembers how many there were."""

    def __init__(self, path: tuple[int, ...]) -> None:
        super().__init__(0, 0)
        self.path, self.widths = path, list[int]()

    def _next(self) -> int:
        place = len(self.widths) - 1
        return self.path[place] if place < len(self.path) else 0

    def choose(self, choice: Choice, world: World) -> Option:
        menu = choice.menu(world)
        self.widths.append(len(menu.options))
        option = menu.options[self._next()]
        self.log_probability += math.log(option.weight / sum(other.weight for other in menu.options))
        return option

    def introduce(self, bind: Bind, world: World) -> Entity:
        free = [entity for entity in bind.lexicon.entities if entity not in world.used]
        self.widths.append(len(free))
        entity = free[self._next()]
        self.log_probability += math.log(1 / len(free))
        self.parts.append(bind.surface(entity))
        return entity


def enumerate_toy() -> dict[str, float]:
    texts: dict[str, float] = {}
    paths: list[tuple[int, ...]] = [()]
    while paths:
        path = paths.pop()
        forced = Forced(path)
        toy().perform(World(), forced)
        text = "".join(forced.parts)
        assert text not in texts, "two derivations of one text"
        texts[text] = forced.log_probability
        full = path + (0,) * (len(forced.widths) - len(path))
        for place in range(len(path), len(full)):
            paths += [(*full[:place], other) for other in range(1, forced.widths[place])]
    return texts


def test_a_toy_world_enumerated_by_hand() -> None:
    """Every text of a small world: the probabilities sum to 1, and reading each gives its own."""
    texts = enumerate_toy()
    assert len(texts) == 2 * 3 * 2 * 2 * 2 + 3 + 2
    assert math.fsum(math.exp(log) for log in texts.values()) == pytest.approx(1)
    assert math.exp(texts["An orange cat met dog at night. The last. Pick one."]) == pytest.approx(
        3 / 4 * 1 / 2 * 1 / 3 * 1 / 2 * 1 / 2 * 2 / 3
    )
    for text, log_probability in texts.items():
        reader = Reader(text)
        toy().perform(World(), reader)
        assert reader.position == len(text) and reader.log_probability == pytest.approx(log_probability)


def test_a_toy_story_that_contradicts_itself() -> None:
    for text, kind in (
        ("A red cat met cat.", "pet"),
        ("Nobody came, and cat slept. The end. Pick one.", "event"),
        ("Nobody went.", "grammar"),
    ):
        with pytest.raises(NotATale) as raised:
            toy().perform(World(), Reader(text))
        assert raised.value.kind == kind, raised.value


def test_an_unknown_rule_and_an_open_bracket_are_found() -> None:
    compiler = Compiler({})
    compiler.add("== story\nOnce <nowhere>.\n")
    with pytest.raises(AssertionError, match="nowhere"):
        compiler.check()
    with pytest.raises(AssertionError, match="not closed"):
        Compiler({}).add("== story\nOnce [a|b.\n")
    with pytest.raises(AssertionError, match="nothing follows"):
        Compiler({}).add("== story\nOnce[ a|]\n")


def test_the_thesaurus_turns_a_phrase_into_a_choice() -> None:
    compiler = Compiler({}, "at last | finally")
    compiler.add("== story\nAt last it rained, at last.\n")
    for text in ("At last it rained, finally.", "Finally it rained, at last."):
        reader = Reader(text)
        compiler.rule("story").perform(World(), reader)
        assert reader.log_probability == pytest.approx(-2 * math.log(2))


@pytest.mark.parametrize(("world", "name"), [(w, name) for w in WORLDS for name in sorted(lexicons(w))])
def test_in_a_word_group_no_entry_begins_another(world: str, name: str) -> None:
    entities = lexicons(world)[name].entities
    shared = set.intersection(*[set(entity.forms) for entity in entities])
    for form in shared - {"he", "him", "his", "himself", "was", "child", "job"}:
        words = sorted(entity.forms[form] for entity in entities)
        assert all(not other.startswith(one) for one, other in pairwise(words)), (name, form)
    assert len({frozenset(entity.forms) for entity in entities}) == 1, f"{name}: entries have different forms"


def test_texts_with_a_percent_sign_are_safe() -> None:
    world = World()
    assert Text(["100%"]).fill(world) == "100%"
