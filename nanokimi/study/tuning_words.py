"""What every output of a study says about how its arms were tuned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nanokimi.report.units import seconds as in_time
from nanokimi.study.tuning_record import INHERITED, RATES, SEARCHED, is_at_edge

NAMED_AT_MOST = 5


def tuning_label(arms: Sequence[dict[str, Any]]) -> str:
    """The sentence, from the arms of a plan."""
    sound = [arm for arm in arms if not arm["leaking"]]
    tuned = [arm for arm in sound if arm["tuning"]]
    if not tuned or len(tuned) < len(sound):
        return "Learning rates and other settings are as configured, not tuned."
    kinds = [arm["tuning"]["kind"] for arm in tuned]
    parts = []
    searched = [arm for arm in tuned if arm["tuning"]["kind"] == SEARCHED]
    if searched:
        record = searched[0]["tuning"]
        every = "Every arm" if len(searched) == len(tuned) else "Each of " + listed(searched)
        hyperparameters = list(
            dict.fromkeys(hyperparameter for arm in searched for hyperparameter in arm["tuning"]["space"])
        )
        counts = numbers(arm["tuning"]["trials"] for arm in searched)
        parts.append(
            f"{every} has its settings searched alike ({', '.join(hyperparameters)}), with {counts} trials on "
            f"{own_seeds(record)}"
        )
    if INHERITED in kinds:
        inheriting = [arm["tuning"] for arm in tuned if arm["tuning"]["kind"] == INHERITED]
        parts.append(
            f"the others inherit those of the nearest one with their optimizer, and have their rate tuned with "
            f"{numbers(record['trials'] for record in inheriting)} trials"
        )
    if RATES in kinds:
        rates = [arm["tuning"] for arm in tuned if arm["tuning"]["kind"] == RATES]
        text = (
            f"learning rate is tuned with {numbers(record['trials'] for record in rates)} trials on "
            f"{own_seeds(rates[0])}, all other settings are as configured"
        )
        parts.append(f"Each arm's {text}" if not parts else f"of the rest only the {text}")
    text = "; ".join([*parts, edges(tuned)])
    runs = sum(arm["tuning"]["runs"] for arm in tuned)
    cost = sum(arm["tuning"].get("cpu_seconds", 0.0) for arm in tuned)
    spent = f" The tuning took {runs:,} runs" + (f", {in_time(cost)} of a processor" if cost else "")
    return text + spent + "."


def own_seeds(record: dict[str, Any]) -> str:
    """The seeds of a record, none of which judges anything."""
    count = max(len(record["seeds"]), 1)
    return f"{count} seeds of its own, by their mean" if count > 1 else "a seed of its own"


def edges(arms: Sequence[dict[str, Any]]) -> str:
    """Which optima are not interior."""
    at_edge = [arm for arm in arms if is_at_edge(arm["tuning"])]
    if not at_edge:
        return "every optimum is interior."
    if len(at_edge) > NAMED_AT_MOST:
        return f"at the edge of what was tried: {len(at_edge)} arms, marked below."
    named = [f"{arm['name']} ({', '.join(is_at_edge(arm['tuning']))})" for arm in at_edge]
    return f"at the edge of what was tried: {', '.join(named)}."


def listed(arms: Sequence[dict[str, Any]]) -> str:
    """Names, or how many there are."""
    names = [arm["name"] for arm in arms]
    return ", ".join(names) if len(names) <= NAMED_AT_MOST else f"{len(names)} arms"


def numbers(found: Any) -> str:
    """Different whole numbers, in order."""
    return " or ".join(map(str, sorted(set(found))))
