"""The built-in stories: told the same everywhere, read back exactly, judged fairly, and fit for a child."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect
from collections import defaultdict
from itertools import zip_longest

import pytest

from nanokimi.tales import (
    END_OF_TEXT,
    NotATale,
    Story,
    generate_text,
    iterate_stories,
    judge,
    probes,
    score,
    story_scores,
    tell,
)
from nanokimi.tales.sampler import lexicons

SEED = 11
MISPRINT = r"  | \n|\n |[^\n]\n[^\n]| [,.!?;:]|,,|(?<!\.)\.\.(?!\.)|[{}\[\]|<>~]|\"\.|,\.|\.,"
SAMPLE_SHA256 = "d2b27546880f6235dca2030adc041dcf6a051699086dd4e6cda8afda9c7b5eec"


@pytest.fixture(scope="module")
def stories() -> list[Story]:
    return [tell(SEED, index) for index in range(2000)]


def test_the_stories_are_the_same_on_every_machine() -> None:
    text = "".join(tell(0, index).text for index in range(200))
    assert hashlib.sha256(text.encode("ascii")).hexdigest() == SAMPLE_SHA256


def test_a_story_is_a_function_of_seed_and_index(stories: list[Story]) -> None:
    assert tell(SEED, 7) == stories[7] and tell(SEED + 1, 7) != stories[7] != tell(SEED, 8)
    assert next(iterate_stories(SEED, start=40)) == stories[40]


def test_generate_text_gives_whole_stories_with_separators(stories: list[Story]) -> None:
    text = generate_text(SEED, characters=5000)
    parts = text.split(f"{END_OF_TEXT}\n")
    assert parts == [story.text for story in stories[: len(parts)]]
    assert len(text) >= 5000 > len(text) - len(parts[-1]) - len(END_OF_TEXT) - 1
    assert generate_text(SEED, characters=1) == stories[0].text


def test_lengths_words_and_layout(stories: list[Story]) -> None:
    lengths = [len(story.text.split()) for story in stories]
    assert min(lengths) >= 80 and max(lengths) <= 400
    assert sum(120 <= length <= 260 for length in lengths) > len(lengths) / 2
    words = {word for story in stories for word in re.findall(r"[a-z']+", story.text.lower())}
    assert len(words) >= 1500
    for story in stories:
        assert story.text.isascii() and story.text.endswith("\n") and not story.text.endswith("\n\n")
        assert END_OF_TEXT not in story.text and "\n\n\n" not in story.text
        assert not re.search(MISPRINT, story.text), story.text


def test_sentences_begin_with_capitals_and_quotes_close(stories: list[Story]) -> None:
    for story in stories:
        for paragraph in story.text.strip().split("\n\n"):
            assert paragraph.count('"') % 2 == 0, paragraph
            assert re.match(r'"?[A-Z]', paragraph) and re.search(r'[.!?]"?$', paragraph), paragraph
        outside = re.sub(r'"[^"]*"', "", story.text)
        assert not re.search(r"(?<!Mr)(?<!Mrs)(?<!\.\.)[.] [a-z]", outside), story.text


def test_articles_fit_the_next_word(stories: list[Story]) -> None:
    for story in stories:
        for article, word in re.findall(r"\b([Aa]n?) ([a-z]+)", story.text):
            vowel = (word[0] in "aeiou" and word[:3] != "one") or word.startswith("hour")
            assert (article.lower() == "an") == vowel, f"{article} {word}"


def test_pronouns_fit_the_name(stories: list[Story]) -> None:
    """An independent check: the first sentence that names the hero alone has no pronoun of the other sex."""
    checked = 0
    girls = {girl.forms[""] for girl in lexicons()["girl"].entities}
    boys = {boy.forms[""] for boy in lexicons()["boy"].entities}
    for story in stories:
        first = story.text.split("\n\n")[0]
        named = (girls | boys) & set(re.findall(r"[A-Z]\w+", first))
        if len(named) == 1 and not re.search(r"mother|father|aunt|uncle", first.split(".")[1]):
            wrong = r"\b(he|him|his)\b" if named < girls else r"\b(she|her)\b"
            assert not re.search(wrong, first.split(".")[1]), first
            checked += 1
    assert checked > 300


def test_facts_once_told_do_not_change(stories: list[Story]) -> None:
    for story in stories:
        told: dict[str, str] = {}
        for fact in story.facts:
            if fact.kind != "holder" and fact.role != "g":  # things change hands, and company comes and goes
                assert fact.role not in told, (fact, story.text)
                told[fact.role] = fact.value
        names = [fact.value for fact in story.facts if fact.kind == "name" and fact.role != "g"]
        assert len(names) == len(set(names)), "two people have one name"


def test_no_story_twice(stories: list[Story]) -> None:
    assert len({story.text for story in stories}) == len(stories)


@pytest.mark.slow
def test_no_story_twice_in_a_hundred_thousand() -> None:
    seen = set()
    for index in range(100_000):
        text = tell(6, index).text
        assert 80 <= len(text.split()) <= 400
        seen.add(hashlib.blake2b(text.encode(), digest_size=12).digest())
    assert len(seen) == 100_000


def test_a_text_of_several_stories_scores_as_their_sum(stories: list[Story]) -> None:
    text = generate_text(SEED, characters=20_000)
    each = story_scores(text)
    assert each == pytest.approx([story.log_probability for story in stories[: len(each)]], rel=1e-12)
    assert (
        score(text)
        == pytest.approx(sum(each))
        == score(text + END_OF_TEXT + "\n")
        == score(text + END_OF_TEXT)
    )


def test_judge_accepts_the_stories_and_what_stops_early(stories: list[Story]) -> None:
    for story in stories[:100]:
        verdict = judge(story.text)
        assert verdict.grammatical and verdict.consistent and verdict.complete and verdict.first_error is None
        assert verdict.characters_ok == len(story.text) and verdict.words == len(story.text.split())
        for cut in (0, 1, 60, len(story.text) // 2, len(story.text) - 1):
            verdict = judge(story.text[:cut])
            assert verdict.grammatical and verdict.consistent and not verdict.complete
            assert verdict.characters_ok == cut and "ends too early" in str(verdict.first_error)


def test_short_tales_are_short_and_in_good_english() -> None:
    told = [tell(SEED, index, "tales-short") for index in range(1000)]
    lengths = [len(story.text.split()) for story in told]
    assert min(lengths) >= 55 and max(lengths) <= 90
    assert len({story.text for story in told}) == len(told)
    for story in told:
        assert story.text.isascii() and story.text.endswith("\n") and not story.text.endswith("\n\n")
        assert not re.search(MISPRINT, story.text), story.text
        assert all(paragraph.count('"') % 2 == 0 for paragraph in story.text.split("\n\n")), story.text
        for article, word in re.findall(r"\b([Aa]n?) ([a-z]+)", story.text):
            assert (article.lower() == "an") == (word[0] in "aeiou"), story.text
        outside = re.sub(r'"[^"]*"', "", story.text)
        assert not re.search(r"[.] [a-z]", outside), story.text


def test_each_world_is_judged_by_its_own_rules() -> None:
    short, long = tell(SEED, 1, "tales-short").text, tell(SEED, 1).text
    assert judge(short, "tales-short").complete and judge(long).complete
    assert not judge(short).complete and not judge(long, "tales-short").complete
    text = generate_text(SEED, characters=5000, name="tales-short")
    each = [tell(SEED, index, "tales-short").log_probability for index in range(100)]
    scores = story_scores(text, "tales-short")
    assert scores == pytest.approx(each[: len(scores)], rel=1e-12)
    assert score(text, "tales-short") == pytest.approx(sum(scores))


def test_probes_of_short_tales_ask_for_what_only_the_story_tells() -> None:
    kinds = set()
    for index in range(60):
        for probe in probes(SEED, index, "tales-short"):
            answer = judge(probe.prefix + probe.answer, "tales-short")
            assert answer.grammatical and answer.consistent
            for alternative in probe.alternatives:
                verdict = judge(probe.prefix + alternative, "tales-short")
                assert verdict.grammatical and not verdict.consistent, (probe, alternative, verdict)
            kinds.add(probe.kind)
    assert {"name", "place", "colour", "kin", "number", "object", "animal", "food", "trade", "time"} <= kinds


def test_judge_finds_the_first_wrong_character(stories: list[Story]) -> None:
    for story in stories[:100]:
        half = story.text.index(" ", len(story.text) // 2)
        verdict = judge(story.text[:half] + "#" + story.text[half:])
        assert not verdict.grammatical and verdict.consistent and verdict.characters_ok == half
    for garbage in ("#", "The", "Once upon a time there was a dragon.", "\n", stories[0].text[5:]):
        assert not judge(garbage).grammatical or not judge(garbage).complete
    assert not judge("Once upon a time").grammatical


@pytest.mark.parametrize(
    "separator", [END_OF_TEXT, f"\n{END_OF_TEXT}\n", f"{END_OF_TEXT} \n", "<|endoftext>\n", "\n", ""]
)
def test_judge_wants_the_right_separator(stories: list[Story], separator: str) -> None:
    verdict = judge(stories[0].text + separator + stories[1].text)
    assert not verdict.grammatical and verdict.characters_ok <= len(stories[0].text) + len(separator)
    with pytest.raises(NotATale) as raised:
        score(stories[0].text + separator + stories[1].text)
    assert raised.value.position >= len(stories[0].text) - 1


def test_probes_ask_for_what_only_the_story_tells() -> None:
    """At each probe the answer reads on; an alternative is inconsistent but grammatical, however the story goes on."""
    kinds: dict[str, int] = defaultdict(int)
    distances: dict[int, int] = defaultdict(int)
    for index in range(60):
        story = tell(SEED, index)
        for probe in probes(SEED, index):
            distance = bisect((15, 35, 75, 150), probe.distance_words)
            if kinds[probe.kind] >= 12 and distances[distance] >= 12:
                continue
            kinds[probe.kind] += 1
            distances[distance] += 1
            told = probe.prefix + probe.answer
            assert story.text.startswith(told) and not probe.prefix.endswith(" ")
            answer = judge(told)
            assert answer.grammatical and answer.consistent
            for alternative, rest in zip_longest(probe.alternatives, [story.text[len(told) :]], fillvalue=""):
                assert alternative != probe.answer
                assert alternative.startswith(" ") == probe.answer.startswith(" ")
                verdict = judge(probe.prefix + alternative + rest)
                assert verdict.grammatical and not verdict.consistent and not verdict.complete, (
                    probe,
                    alternative,
                )
                assert probe.kind in str(verdict.first_error)
                assert verdict.characters_ok <= len(probe.prefix) + 1
    assert {"name", "holder", "place", "colour", "kin", "number", "object", "wish"} <= set(kinds), kinds
    assert all(distances[distance] >= 12 for distance in range(1, 5)), distances


def test_judge_catches_a_swapped_pronoun(stories: list[Story]) -> None:
    story = next(story for story in stories if re.match(r"There was a boy .* He lived", story.text))
    verdict = judge(story.text.replace("He lived", "She lived", 1))
    assert not verdict.consistent and verdict.grammatical and "pronoun" in str(verdict.first_error)
