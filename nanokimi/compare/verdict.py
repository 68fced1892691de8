"""From losses to a verdict: which arm is lower, if other seeds can be expected to agree.

A winner is named only with two seeds or more, and only if its interval over seeds, corrected for the number of pairs,
excludes zero against every other arm. How much a difference depends on which text was scored is shown, but decides
nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanokimi.compare.earlier_searches import MISSING, SEARCHES, earlier_variances, patterns_of
from nanokimi.config import SpreadConfig
from nanokimi.measure.stats import LEVEL, NOT_DISTINGUISHABLE, compare_pairs, search_variance, t_quantile
from nanokimi.runtime.text import listed

BLOCKS = 50  # neighbouring windows are similar, blocks of them are nearly independent
ENOUGH_SEEDS, MANY_SEEDS = 4, 5
"""With three of the default comparison its lead over AdamW is not told from chance, with four it is (p 0.04), with five
more clearly (0.016; docs/results.md): a verdict over fewer than the first advises the second."""


@dataclass(frozen=True)
class PairedDifference:
    """Loss of the first model minus the second's in nats per token, with a 95% interval over the scored text."""

    difference: float
    low: float
    high: float


def paired_difference(
    first_nats: np.ndarray, second_nats: np.ndarray, window_tokens: np.ndarray
) -> PairedDifference:
    """Compare two models window by window on the same text; `window_tokens` are the tokens that each window scores.

    The windows are averaged over at most BLOCKS blocks of the text, and the t interval is over these. It says how much
    the difference depends on which text was scored, and nothing about other seeds.
    """
    differences = first_nats - second_nats
    tokens = int(window_tokens.sum())
    difference = float(differences.sum() / tokens)
    blocks = np.array_split(np.arange(len(differences)), min(BLOCKS, len(differences)))
    if len(blocks) < 2:
        return PairedDifference(difference, float("-inf"), float("inf"))
    # blocks differ in length, so each is compared with the average difference over its length
    excess = np.array(
        [differences[block].sum() - difference * window_tokens[block].sum() for block in blocks]
    )
    spread = np.sqrt((excess**2).sum() * len(blocks) / (len(blocks) - 1)) / tokens
    half = t_quantile(1 - LEVEL / 2, len(blocks) - 1) * float(spread)
    return PairedDifference(difference, difference - half, difference + half)


def pairs_of(
    arms: list[dict[str, Any]], runs: list[dict[str, Any]], spread: SpreadConfig | None = None
) -> list[dict[str, Any]]:
    """Every pair of arms that do not leak, judged over seeds, with the noise of the searches.

    An arm that inherits its settings has the noise of that search, too. The scatter of single trials is known from the
    runs judged here, unless the search repeated its trials. `noise_missing` says which noise cannot be told. How far
    rounding alone moves the preset's runs (`spread`) is the least deviation that is believed of these runs.
    """
    sound = [arm for arm in arms if arm["leaking"] is None]
    losses = {arm["name"]: [run["test_loss"] for run in runs if run["arm"] == arm["name"]] for arm in sound}
    noise: dict[str, float] = {}
    inherited: dict[str, dict[Hashable, float]] = {}
    for arm in sound:
        if arm["search"]:
            chosen = [run["val_loss"] for run in runs if run["arm"] == arm["name"]]
            noise[arm["name"]] = search_variance(
                [trial["losses"] for trial in arm["search"]["table"]],
                chosen,
                patterns=patterns_of(arm["search"]),
            )
            inherited[arm["name"]] = earlier_variances(arm["search"], chosen)
    lacking = {arm["name"]: lacking_of(arm["search"] or {}) for arm in sound}
    pairs = compare_pairs(losses, noise, inherited, rounding=spread.rounding if spread else None)
    for pair in pairs:
        here, there = lacking[pair["first"]], lacking[pair["second"]]
        apart = sorted(here.keys() ^ there.keys())
        pair["noise_missing"] = list(dict.fromkeys({**here, **there}[one] for one in apart))
        if pair["noise_missing"] and not pair["words"].startswith(NOT_DISTINGUISHABLE):
            pair["words"] = f"no verdict: {pair['words']}, but the noise of an inherited search is missing"
    return pairs


def lacking_of(search: dict[str, Any]) -> dict[tuple[str, str], str]:
    """The earlier search whose noise cannot be told, and why not, by file and arm: at most one."""
    missing = search.get(MISSING)
    if missing is None and "inherited_from" in search and search.get(SEARCHES) is None:
        file = str(search.get("inherited_file", "a study"))
        missing = {"file": file, "arm": search["inherited_from"], "why": f"{file} was not read"}
    return {} if missing is None else {(missing["file"], missing["arm"]): missing["why"]}


def text_interval(
    pair: dict[str, Any], runs: list[dict[str, Any]], window_tokens: np.ndarray, out: Path
) -> list[float] | None:
    """The interval of a pair over the text, for the first seed; None if the text is too short."""
    first, second = (next(run for run in runs if run["arm"] == pair[side]) for side in ("first", "second"))
    nats = [np.load(out / run["folder"] / "window_nats.npy", allow_pickle=False) for run in (first, second)]
    found = paired_difference(nats[0], nats[1], window_tokens)
    return [found.low, found.high] if np.isfinite(found.low) and np.isfinite(found.high) else None


def verdict(
    arms: list[dict[str, Any]],
    pairs: list[dict[str, Any]],
    baselines: dict[str, dict[str, float | None]],
    spread: SpreadConfig | None,
) -> dict[str, Any]:
    """The winner, if there is one, and a few sentences. A leaking arm is never ranked."""
    leaking = [arm["name"] for arm in arms if arm["leaking"] is not None]
    sound = sorted((arm for arm in arms if arm["leaking"] is None), key=lambda arm: arm["test_loss"])
    base = {"winner": None, "ranked": not leaking}
    sentences = []
    if leaking:
        reasons = "; ".join(
            f"{arm['name']} is {arm['leaking']}" for arm in arms if arm["leaking"] is not None
        )
        sentences.append(f"{reasons}. Not ranked: the loss is void.")
    if not sound:
        return {**base, "sentence": " ".join(sentences)}
    seeds = len(sound[0]["seeds"])
    losses = ", ".join(f"{arm['name']} {arm['test_loss']:.4f}" for arm in sound)
    over = f"means of {seeds} seeds" if seeds > 1 else "one seed"
    sentences.append(f"{losses} nats per token of the test text ({over}).")
    winner = None
    if seeds < 2 and len(arms) > 1:
        sentences.append(one_seed(spread))
    elif len(sound) > 1:
        ahead = {other["name"]: lead(sound[0]["name"], other["name"], pairs) for other in sound[1:]}
        winner = sound[0]["name"] if all(one["sure"] for one in ahead.values()) else None
        sentences += lead_sentences(sound[0]["name"], ahead, seeds) + lacking_sentences(pairs)
    sentences += floor_sentences(sound, baselines)
    return {**base, "winner": winner, "sentence": " ".join(sentences)}


def one_seed(spread: SpreadConfig | None) -> str:
    """Why there is no winner with one seed, and how much runs of the preset differ."""
    if spread is None:
        known = "How much runs of these settings differ was not measured"
    else:
        alone = "" if spread.rounding is None else f", and by {spread.rounding:.3f} by rounding alone"
        known = (
            f"Runs of the preset as it ships differ by {spread.seed:.3f} from seed to seed{alone} (standard "
            f"deviation{'s' * bool(alone)})"
        )
    return f"No winner: one seed cannot tell an effect from chance. {known}: compare with --seeds {MANY_SEEDS} or more."


def lead(first: str, second: str, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """How far the first arm is below the second (positive if it is lower), with the interval."""
    pair = next(one for one in pairs if {one["first"], one["second"]} == {first, second})
    sign = -1 if pair["first"] == first else 1
    low, high = sorted(sign * bound for bound in pair["ci95"])
    excludes_zero = low > 0 and pair["holm_p"] < 0.05
    whole = not pair.get("noise_missing")
    return {
        "by": sign * pair["mean"],
        "low": low,
        "high": high,
        "sure": excludes_zero and whole,
        "too_narrow": excludes_zero and not whole,
    }


def lead_sentences(best: str, ahead: dict[str, dict[str, Any]], seeds: int) -> list[str]:
    """Sentences on the lowest arm against each other one."""

    def told(kind: str) -> list[str]:
        return [
            f"{name} by {one['by']:.4f} (95% interval {one['low']:.4f} to {one['high']:.4f})"
            for name, one in ahead.items()
            if one[kind]
        ]

    sure, narrow = told("sure"), told("too_narrow")
    unsure = [name for name, one in ahead.items() if not (one["sure"] or one["too_narrow"])]
    sentences = [f"{best} is better than {listed(sure)}."] if sure else []
    if narrow:
        sentences.append(
            f"{best} is lower than {listed(narrow)}, but noise is missing from the interval: no winner."
        )
    if unsure:
        others = " or ".join(unsure)
        sentences.append(f"{best} is not distinguishable from {others}: no winner.")
        if seeds < ENOUGH_SEEDS:
            sentences.append(
                f"With {seeds} seeds only a large difference is told from chance: compare with --seeds {MANY_SEEDS} or "
                "more, from another --seed (looking at the same runs twice favours winners)."
            )
    return sentences


def lacking_sentences(pairs: list[dict[str, Any]]) -> list[str]:
    """Which searches' noise is missing from which intervals."""
    lacking = [pair for pair in pairs if pair.get("noise_missing")]
    if not lacking:
        return []
    why = listed(dict.fromkeys(reason for pair in lacking for reason in pair["noise_missing"]))
    which = listed(f"{pair['first']} - {pair['second']}" for pair in lacking)
    return [
        f"The noise of the search that settings were inherited from is missing from the intervals of {which}, which "
        f"are too narrow: {why}."
    ]


def looks_sentence(earlier: Sequence[int], seeds: int, dropped: Sequence[str], what: str = "arms") -> str:
    """A warning if the number of seeds was another before, or if `what` (arms, comparisons) has been left out; or "".

    Seeds that are added or left out are further chances of a winner, and so is what is left out, because Holm's
    correction counts the pairs.
    """
    fewer, more = ([str(count) for count in earlier if (count - seeds) * sign > 0] for sign in (-1, 1))
    changes = [
        f"the number of seeds was {verb} from {' and '.join(counts)} to {seeds}"
        for verb, counts in (("raised", fewer), ("lowered", more))
        if counts
    ]
    if dropped:
        changes.append(f"{listed(dropped)} {'was' if len(dropped) == 1 else 'were'} left out")
    if not changes or seeds < 2:
        return ""
    return (
        f"BEWARE: {listed(changes)} after the comparison had begun. Whoever changes seeds or {what} until there is a "
        "winner finds one more often than in 5% of comparisons of equal arms."
    )


def floor_sentences(sound: list[dict[str, Any]], baselines: dict[str, dict[str, float | None]]) -> list[str]:
    """Sentences on how the arms compare with a 5-gram model and with the best possible loss."""
    sentences = []
    if sound[0].get("floor_gap") is not None:
        gaps = ", ".join(f"{arm['floor_gap']:.4f}" for arm in sound)
        attainable = sound[0].get("attainable_floor") is not None
        out_of_reach = (
            "texts' entropy, which no model can reach that is not told which text it reads"
            if sound[0].get("test_sources")
            else "text's entropy, which windows that cut documents cannot reach"
        )
        floor = "attainable floor" if attainable else out_of_reach
        sentences.append(f"Above the {floor}: {gaps}.")
    five_gram = baselines["5-gram"]["test_loss"]
    if five_gram is not None and sound[0]["test_loss"] > five_gram:
        who = "None beats" if len(sound) > 1 else "It does not beat"
        sentences.append(f"{who} a 5-gram model ({five_gram:.4f}).")
    return sentences
