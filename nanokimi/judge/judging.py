"""Which questions are asked, in which order, and what the answers amount to.

A story is rated several times, so that the judge's agreement with itself can be measured. Each pair of arms is compared
on the same prompt and seed, in both orders. Names are never sent, and the order of all questions is random. Means and
intervals are over prompts (stories from one prompt are alike): they say how these trained models do, not what another
training of the same architectures would give.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from nanokimi.judge.questions import QUALITIES, pair_question, rating_question, read_choice, read_rating
from nanokimi.measure.stats import LEVEL, NOT_DISTINGUISHABLE, SeedDifference, holm, paired_t

MOST_UNREADABLE = 0.2
"""Share of answers that cannot be read above which no winner is named."""
LEAST_CONSISTENT = 0.5
"""Share of pairs judged alike in both orders below which no winner is named."""
CLOSE = 1.0
"""Points within which two ratings of the same story agree."""


@dataclass(frozen=True)
class Story:
    """What an arm wrote after a prompt."""

    arm: str
    prompt: int
    sample: int
    opening: str
    text: str


@dataclass
class Question:
    """A rating of one story (`second` is None), or a choice between two; with the judge's answer once it is known."""

    first: Story
    second: Story | None
    round: int
    answer: str | None = None

    @property
    def words(self) -> str:
        """What the judge is asked."""
        if self.second is None:
            return rating_question(self.first.opening, self.first.text)
        return pair_question(self.first.opening, self.first.text, self.second.text)


def plan(stories: Sequence[Story], rounds: int, pairs: bool, seed: int) -> list[Question]:
    """All questions, in random order."""
    questions = [Question(story, None, number) for story in stories for number in range(rounds)]
    if pairs:
        for one, other in combinations(stories, 2):
            if one.arm != other.arm and (one.prompt, one.sample) == (other.prompt, other.sample):
                questions += [Question(one, other, 0), Question(other, one, 1)]
    random.Random(seed).shuffle(questions)
    return questions


def ask_all(questions: Sequence[Question], ask: Callable[[str], str], at_once: int) -> None:
    """Fill in the answers, `at_once` questions at a time. After an error, questions that wait are not asked."""

    def answer(question: Question) -> None:
        question.answer = ask(question.words)

    with ThreadPoolExecutor(at_once) as pool:
        waiting = [pool.submit(answer, question) for question in questions]
        try:
            for future in waiting:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def over_prompts(values: dict[int, list[float]]) -> list[float]:
    """The mean of each prompt, in the order of the prompts."""
    return [fmean(values[prompt]) for prompt in sorted(values)]


def interval(difference: SeedDifference) -> list[float] | None:
    """The 95% interval; None for a single prompt."""
    return [difference.low, difference.high] if math.isfinite(difference.low) else None


def verdict(questions: Sequence[Question], arms: Sequence[str]) -> dict[str, Any]:
    """Scores, differences, agreement and the sentence, from answered questions."""
    ratings: dict[str, dict[str, dict[int, list[float]]]] = {arm: {q: {} for q in QUALITIES} for arm in arms}
    again: dict[tuple[str, int, int], list[float]] = {}
    unreadable = 0
    for question in questions:
        story = question.first
        if question.second is not None:
            unreadable += read_choice(question.answer or "") is None
        elif (rating := read_rating(question.answer or "")) is None:
            unreadable += 1
        else:
            for quality, value in rating.items():
                ratings[story.arm][quality].setdefault(story.prompt, []).append(value)
            again.setdefault((story.arm, story.prompt, story.sample), []).append(rating["overall"])
    found = {
        "questions": len(questions),
        "unreadable": unreadable,
        "scores": {arm: scores_of(ratings[arm]) for arm in arms},
        "self_agreement": agreement(list(again.values())),
        **preferences(questions, arms),
    }
    found["differences"] = differences(ratings, arms)
    return {**found, "sentence": sentence(found, arms)}


def scores_of(ratings: dict[str, dict[int, list[float]]]) -> dict[str, Any]:
    """Mean and interval of each quality; None where no answer could be read."""
    found: dict[str, Any] = {}
    for quality, values in ratings.items():
        means = over_prompts(values)
        spread = paired_t(means, [0.0] * len(means)) if means else None
        found[quality] = spread and {"mean": spread.mean, "ci95": interval(spread), "prompts": len(means)}
    return found


def agreement(repeated: Sequence[Sequence[float]]) -> dict[str, float] | None:
    """How well ratings of the same story agree; None if none was rated twice."""
    gaps = [abs(a - b) for values in repeated for a, b in combinations(values, 2)]
    if not gaps:
        return None
    return {"mean_gap": fmean(gaps), "within_one_point": fmean(gap <= CLOSE for gap in gaps)}


def differences(
    ratings: dict[str, dict[str, dict[int, list[float]]]], arms: Sequence[str]
) -> list[dict[str, Any]]:
    """Each pair of arms, first minus second, overall, on the prompts that both have; judged together with Holm."""
    found = []
    for first, second in combinations(arms, 2):
        one, other = ratings[first]["overall"], ratings[second]["overall"]
        shared = sorted(one.keys() & other.keys())
        means = [[fmean(values[prompt]) for prompt in shared] for values in (one, other)]
        found.append((first, second, paired_t(*means) if shared else None))
    adjusted = holm([difference.p for *_, difference in found if difference is not None])
    entries: list[dict[str, Any]] = []
    for first, second, difference in found:
        if difference is None:
            entries.append({"first": first, "second": second, "mean": None, "words": "not rated"})
            continue
        holm_p = adjusted.pop(0)
        sure = difference.distinguishable and holm_p < LEVEL
        words = f"{'higher' if difference.mean > 0 else 'lower'} by {abs(difference.mean):.2f}"
        entries.append(
            {
                "first": first,
                "second": second,
                "mean": difference.mean,
                "ci95": interval(difference),
                "holm_p": holm_p,
                "prompts": difference.seeds,
                "words": words if sure else NOT_DISTINGUISHABLE,
            }
        )
    return entries


def preferences(questions: Sequence[Question], arms: Sequence[str]) -> dict[str, Any]:
    """How often each arm was preferred to another, and whether the judge decides alike in both orders."""
    # By pair of arms, prompt and sample: 1 if the first arm was preferred, -1 the second, 0 a tie, in both orders.
    chosen: dict[tuple[str, str, int, int], list[int]] = {}
    first_shown: list[int] = []
    for question in questions:
        choice = read_choice(question.answer or "") if question.second is not None else None
        if choice is None or question.second is None:
            continue
        shown = {0: 0, 1: 1, 2: -1}[choice]
        first_shown += [choice == 1] if choice else []
        names = (question.first.arm, question.second.arm)
        swapped = arms.index(names[0]) > arms.index(names[1])
        key = (*(reversed(names) if swapped else names), question.first.prompt, question.first.sample)
        chosen.setdefault(key, []).append(-shown if swapped else shown)
    both = [values for values in chosen.values() if len(values) == 2]
    entries = []
    for first, second in combinations(arms, 2):
        by_prompt: dict[int, list[float]] = {}
        for (one, other, prompt, _), values in chosen.items():
            if (one, other) == (first, second):
                by_prompt.setdefault(prompt, []).extend(values)
        means = over_prompts(by_prompt)
        if means:
            spread = paired_t(means, [0.0] * len(means))
            entries.append({"first": first, "second": second, "mean": spread.mean, "ci95": interval(spread)})
    return {
        "preferences": entries,
        "same_in_both_orders": fmean(a == b for a, b in both) if both else None,
        "first_shown_preferred": fmean(first_shown) if first_shown else None,
    }


def sentence(found: dict[str, Any], arms: Sequence[str]) -> str:
    """Who is better, or why nobody is called so."""
    if len(arms) < 2:
        return "One model: nothing to compare."
    if found["unreadable"] > MOST_UNREADABLE * found["questions"]:
        share = f"{found['unreadable']} of {found['questions']}"
        return f"No winner: {share} answers of the judge could not be read."
    consistent = found["same_in_both_orders"]
    if consistent is not None and consistent < LEAST_CONSISTENT:
        return f"No winner: shown a pair in the other order, the judge decides alike in only {consistent:.0%} of cases."
    means = {arm: (found["scores"][arm]["overall"] or {}).get("mean", -math.inf) for arm in arms}
    best = max(arms, key=lambda arm: means[arm])
    unsure = []
    for entry in found["differences"]:
        if best in (entry["first"], entry["second"]):
            other = entry["second"] if entry["first"] == best else entry["first"]
            sign = 1 if entry["first"] == best else -1
            chosen = [p for p in found["preferences"] if {p["first"], p["second"]} == {best, other}]
            unclear = entry["words"] in (NOT_DISTINGUISHABLE, "not rated")
            # The difference is of the beginnings where both were rated, so it, too, may point the other way.
            if unclear or any(one["mean"] * sign < 0 for one in [entry, *chosen]):
                unsure.append(other)
    if unsure:
        return (
            f"No winner: {best} has the highest score, but is {NOT_DISTINGUISHABLE} from {', '.join(unsure)}."
        )
    return f"{best} is rated higher overall than {', '.join(arm for arm in arms if arm != best)}."
