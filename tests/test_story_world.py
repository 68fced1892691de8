"""The story world as judge: proportions, openings, questions, and a run on tales from end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_GPT

from nanokimi import tales
from nanokimi.config import DatasetConfig, RunConfig, SampleConfig
from nanokimi.data.tokenizers.own import ByteTokenizer, CharTokenizer
from nanokimi.measure import story_world
from nanokimi.measure.story_world import (
    QUESTION_SEED,
    collect_probes,
    continuation_nats,
    first_sentence,
    judge_stories,
    proportion,
    recall,
    wilson,
)
from nanokimi.model.build import build_model
from nanokimi.model.output import Output
from nanokimi.train.run import train_alone


def test_a_proportion_says_which_were_right() -> None:
    """Wilson's interval worked out by hand for 8 of 10; tests/test_stats.py holds it against statsmodels."""
    found = proportion([True] * 8 + [False] * 2)
    assert (found["share"], found["low"], found["high"]) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert found["right"] == [1] * 8 + [0] * 2 and found["total"] == 10
    nothing = proportion([])
    assert (nothing["share"], nothing["low"], nothing["high"], nothing["total"]) == (0, 0, 1, 0)
    assert wilson(0, 0) == (0, 1)


def test_the_world_s_own_stories_are_perfect_and_cut_ones_are_not() -> None:
    def true_end(opening: str, i: int) -> str:
        return tales.tell(QUESTION_SEED, i).text.removeprefix(opening)

    found = judge_stories(true_end, stories=5)
    assert found["perfect"]["share"] == 1.0 and found["right_before_first_error"] == 1.0
    cut = judge_stories(lambda opening, i: true_end(opening, i)[:200], stories=5)
    assert cut["grammatical"]["share"] == 1.0 and cut["complete"]["share"] == 0.0
    noise = judge_stories(lambda opening, i: " qwert yuiop.\n", stories=5)
    assert noise["grammatical"]["share"] == 0.0 and noise["right_before_first_error"] < 1.0
    assert noise["examples"][0]["first_error"]


def test_the_openings_are_the_first_sentences_of_unseen_stories() -> None:
    text = tales.tell(QUESTION_SEED, 3).text
    opening = first_sentence(text)
    assert text.startswith(opening) and opening.endswith(".") and "." not in opening[:-1]


def test_an_opening_holds_the_mark_that_closes_its_quotation() -> None:
    """It was cut off, and no model could add it whose tokenizer has it in one piece with the full stop."""
    openings = [first_sentence(tales.tell(QUESTION_SEED, i, "tales-short").text) for i in range(100)]
    assert sum(opening.endswith('."') for opening in openings) == 10
    assert all(opening.count('"') % 2 == 0 for opening in openings)
    assert first_sentence("Yes. No.") == "Yes."


def test_questions_are_spread_over_distances_and_kinds() -> None:
    probes = collect_probes(12)
    assert {distance: len(found) for distance, found in probes.items()} == dict.fromkeys(
        ("20", "50", "100", "200"), 12
    )
    for distance, (low, high) in {
        "20": (15, 35),
        "50": (35, 75),
        "100": (75, 150),
        "200": (150, 401),
    }.items():
        assert all(low <= probe.distance_words < high for probe in probes[distance])
        assert len({probe.kind for probe in probes[distance]}) > 4, "names must not crowd out the rest"


class Oracle(torch.nn.Module):
    """Gives probability nearly 1 to the next character of one text, wherever that stands in the batch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = torch.tensor(list(text.encode()))
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, ids_BT: torch.Tensor) -> Output:
        logits = torch.zeros(*ids_BT.shape, 256)
        begin = len(self.text) - self.longest
        for t in range(ids_BT.shape[1]):
            if begin + t + 1 < len(self.text):
                logits[:, t, self.text[begin + t + 1]] = 20.0
        return Output(logits)


def test_a_model_that_knows_the_text_finds_the_answer_also_with_its_beginning_cut_off() -> None:
    probe = collect_probes(4)["100"][0]
    text = probe.prefix + probe.answer
    oracle = Oracle(text)
    choices = [
        probe.answer,
        *(a[: len(probe.answer)].ljust(len(probe.answer), "x") for a in probe.alternatives),
    ]
    for context in (32, 10_000):
        oracle.longest = min(len(text.encode()), context + 1)
        nats = continuation_nats(oracle, ByteTokenizer(), context, probe.prefix, choices)
        assert min(nats) == nats[0] < 1.0 and min(nats[1:]) > 10.0


def test_continuation_nats_are_those_of_the_whole_text() -> None:
    """Against the plain way: score every token of prefix + choice, and subtract the prefix."""
    tokenizer = CharTokenizer("the cat sat on a mat.")
    model = build_model(replace(TINY_GPT, vocab_size=tokenizer.vocab_size), seed=0).eval()

    def total(text: str) -> float:
        ids = torch.tensor([tokenizer.encode(text).tolist()])
        logits = model(ids[:, :-1]).logits_BTW.detach().log_softmax(-1)
        return -float(logits.gather(2, ids[:, 1:, None]).sum())

    prefix, choices = "the cat", [" sat", " a", " mat on"]
    found = continuation_nats(model, tokenizer, 32, prefix, choices)
    assert found == pytest.approx([total(prefix + c) - total(prefix) for c in choices], rel=1e-4)


def test_an_untrained_model_guesses() -> None:
    tokenizer = ByteTokenizer()
    model = build_model(replace(TINY_GPT, vocab_size=256, max_position_embeddings=64), seed=0)
    for answers in recall(model, tokenizer, 64, questions=12).values():
        assert answers["total"] == len(answers["right"]) == 12
        assert (
            sum(answers["right"]) == pytest.approx(12 * answers["share"]) and 0.1 < answers["guessing"] < 0.6
        )
        assert answers["low"] <= answers["guessing"] + 0.25, "no better than chance by a wide margin"


def test_a_model_that_prefers_no_word_gives_no_right_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The true word is the first choice, and of equally likely ones the first counted as the model's answer."""
    monkeypatch.setattr(story_world, "continuation_nats", lambda *a: [1.0] * len(a[-1]))
    model = build_model(replace(TINY_GPT, vocab_size=256), seed=0)
    for answers in recall(model, ByteTokenizer(), 64, questions=4).values():
        assert answers["right"] == [0] * 4


def test_a_run_on_tales_knows_its_floor(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = replace(
        tiny_config(context_length=32, max_steps=4, eval_every=4),
        dataset=DatasetConfig(path="tales", tokenizer="byte", characters=30_000, val_fraction=0.1, workers=1),
        sample=SampleConfig(prompts=("There was",), max_new_tokens=5, judged_stories=2, questions=2),
    )
    result = train_alone(config, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "data" / "data.json").read_text())
    floor = facts["test_floor_nats"] / facts["test_tokens"]
    assert 0 < floor < 0.2 and result["floor_gap"] == pytest.approx(result["test_loss"] - floor)
    assert result["floor"] == pytest.approx(floor) and result["attainable_floor"] is None, "tales do not fit"
    assert 0 < result["floor_gap_bits_per_byte"] < result["test_bits_per_byte"]
    assert result["tales"]["judged"]["perfect"]["total"] == 2
    assert set(result["tales"]["recall"]) == {"20", "50", "100", "200"}


def variance_between_stories(right: list[int], stories: list[int]) -> float:
    """The variance of a share of right answers by whole stories, over that of independent answers."""
    share, total = sum(right) / len(right), len(right)
    by_story = {story: 0.0 for story in stories}
    for one, story in zip(right, stories, strict=True):
        by_story[story] += one - share
    clusters = len(by_story)
    variance = sum(x**2 for x in by_story.values()) / total**2 * clusters / (clusters - 1)
    return variance / (share * (1 - share) / total)


def test_answers_about_one_story_are_recorded_as_no_more_alike_than_others() -> None:
    """Wilson's interval takes questions for independent, several of which are about one story (docs/results.md)."""
    alike = variance_between_stories([1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1])
    assert alike == pytest.approx(6), "the test can see dependence"
    root, worlds = Path(__file__).parents[1], {"tales-short": 50, "tales": 100}
    lines = (root / "docs" / "results" / "tales-short.jsonl").read_text(encoding="utf-8").splitlines()
    shipped = json.loads((root / "nanokimi" / "pretrained" / "tales-1m" / "shipped.json").read_text())
    asked = {"tales-short": [run["tales"]["recall"] for run in map(json.loads, lines) if run.get("tales")]}
    asked["tales"] = [model["texts"]["tales"]["recall"] for model in shipped["models"]]
    found, shuffled, stories_asked = [], [], []
    generator = np.random.default_rng(0)
    for world, questions in worlds.items():
        probes = collect_probes(questions, world)
        texts = [tales.tell(QUESTION_SEED + 1, i, world).text for i in range(20 * questions)]
        for recalled in asked[world]:
            for distance, answers in recalled.items():
                stories = [
                    next(i for i, text in enumerate(texts) if text.startswith(probe.prefix))
                    for probe in probes[distance]
                ]
                stories_asked.append(len(set(stories)))
                if 0 < sum(answers["right"]) < len(answers["right"]):  # else neither has a variance
                    found.append(variance_between_stories(answers["right"], stories))
                    drawn = [list(generator.permutation(answers["right"])) for _ in range(300)]
                    shuffled.append([variance_between_stories(right, stories) for right in drawn])
    assert stories_asked[:2] == [21, 32] and len(found) == 3 * 2 + 2 * 4 - 1
    assert sum(found) / len(found) == pytest.approx(1.0, abs=0.05)
    assert [round(min(found), 1), round(max(found), 1)] == [0.6, 1.2], "the range that docs/results.md gives"
    means = np.mean(shuffled, axis=0)  # of answers that are independent of their stories
    assert np.quantile(means, 0.025) < np.mean(found) < np.quantile(means, 0.975)
