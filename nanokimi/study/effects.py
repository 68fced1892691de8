"""The comparisons of a study, judged: a paired interval with the searches' noise, and Holm over all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nanokimi.compare.match import agreement, describe_agreement
from nanokimi.measure.stats import hierarchical_bootstrap, holm_of_distinct, in_words, paired_t
from nanokimi.study.jobs import Line
from nanokimi.study.search_noise import noise_of_searches

Rows = Mapping[tuple[str, str], dict[str, Any]]
"""What a study reports of each arm, by name and budget."""
Runs = Mapping[str, dict[str, list[str]]]
"""The keys of each arm's runs, by name and budget."""
Tested = frozenset[tuple[tuple[str, ...], float]]
"""What a comparison tests: the weight of each arm's runs."""


def key_of_test(comparison: dict[str, Any], runs: Runs) -> Tested:
    """The test that a comparison makes: the same for the same weights of the same runs, whatever the arms are called.

    To turn the signs of all weights around makes no other test. Empty for a comparison of runs with themselves.
    """
    weights: dict[tuple[str, ...], float] = {}
    for name, weight in comparison["weights"].items():
        keys = tuple(runs[name][comparison["budget"]])
        weights[keys] = weights.get(keys, 0.0) + weight
    kept = {keys: weight for keys, weight in weights.items() if weight}
    sign = math.copysign(1.0, kept[min(kept)]) if kept else 1.0
    return frozenset((keys, sign * weight) for keys, weight in kept.items())


def effects(
    plan: dict[str, Any], results: dict[str, Line], arms: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Every comparison of the plan, judged. Holm's correction counts the tests of all tables together, each once.

    `arms` are the rows of the report's arms. Some comparisons are one test under several names, because arms whose
    settings turn out the same share their runs. If one of these arms inherits and the other was searched, the noise of
    their searches differs; then the larger is that of the test.
    """
    rows = {(row["name"], row["budget"]): row for row in arms}
    runs = {arm["name"]: arm["runs"] for arm in plan["arms"]}
    tests: list[Tested | None] = []
    noise: dict[Tested, float] = {}
    for one in plan["comparisons"]:
        here = rows_of(one, rows)
        judged = without_verdict(here) is None
        tests.append(key_of_test(one, runs) if judged else None)
        if (test := tests[-1]) is not None:
            noise[test] = max(noise.get(test, 0.0), noise_of_searches(one["weights"], here))
    found = [
        effect_of(
            one, rows_of(one, rows), 0.0 if test is None else noise[test], runs, results, plan["block_tokens"]
        )
        for one, test in zip(plan["comparisons"], tests, strict=True)
    ]
    members = [(one, test) for one, test in zip(found, tests, strict=True) if test]
    adjusted = holm_of_distinct([one["p"] for one, _ in members], [test for _, test in members])
    by_test = dict(zip([test for _, test in members], adjusted, strict=True))
    for one, test in zip(found, tests, strict=True):
        if test is not None:
            one["holm_p"], one["tests"] = by_test.get(test, 1.0), len(by_test)
            one["words"] = in_words(one.pop("difference"), one["holm_p"])
    return found


def rows_of(comparison: dict[str, Any], rows: Rows) -> dict[str, dict[str, Any]]:
    """The rows of a comparison's arms, by name."""
    return {name: rows[name, comparison["budget"]] for name in comparison["weights"]}


def without_verdict(here: Mapping[str, dict[str, Any]]) -> str | None:
    """Why a comparison of these rows cannot be judged: an arm leaks, or a run diverged."""
    leaking = [name for name, row in here.items() if row["leaking"]]
    if leaking:
        return f"no verdict: {' and '.join(leaking)} LEAKING"
    if any(row["test_loss"] is None for row in here.values()):
        return "no verdict: a run diverged"
    return None


def effect_of(
    comparison: dict[str, Any],
    here: Mapping[str, dict[str, Any]],
    noise: float,
    runs: Runs,
    results: dict[str, Line],
    tokens: Sequence[int],
) -> dict[str, Any]:
    """One comparison: intervals, p, and what its arms are matched in. It has no numbers if an arm leaks or diverged.

    `noise` is the variance that the searches add.
    """
    weights, budget = comparison["weights"], comparison["budget"]
    base = {**comparison, "mean": None, "holm_p": None, "tests": 0, "ratios": {}, "match": ""}
    words = without_verdict(here)
    if words is not None:
        return {**base, "words": words}
    losses_S = sum(weight * np.array(here[name]["losses"]) for name, weight in weights.items())
    # Arms whose runs all ended the same have the same settings, so their searches chose the same and add no noise.
    searches = noise if np.any(losses_S) else 0.0
    difference = paired_t(list(losses_S), [0.0] * len(losses_S), extra_variance=searches)
    nats_SG = sum(
        weight * np.array([results[key]["block_nats"] for key in runs[name][budget]])
        for name, weight in weights.items()
    )
    low, high = hierarchical_bootstrap(np.asarray(nats_SG), np.asarray(tokens))
    unsure = not math.isfinite(difference.low)
    ratios = agreement(*here.values()) if len(here) == 2 else {}
    return {
        **base,
        "difference": difference,
        "mean": difference.mean,
        "ci95": None if unsure else [difference.low, difference.high],
        "bootstrap95": None if unsure else [low, high],
        "p": difference.p,
        "search_variance": searches if math.isfinite(searches) else None,
        "seeds": difference.seeds,
        "per_seed": [float(x) for x in losses_S],
        "ratios": ratios,
        "match": describe_agreement(ratios),
    }
