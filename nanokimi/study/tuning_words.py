"""The note on how the arms of a study were tuned, which every output shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nanokimi.report.search_place import beside_sentence
from nanokimi.report.units import seconds as in_time
from nanokimi.runtime.text import listed
from nanokimi.study.tuning_record import INHERITED, RATES, SEARCHED, is_at_edge

NAMED_AT_MOST = 5


def tuning_label(arms: Sequence[dict[str, Any]]) -> str:
    """The sentences about tuning, from the arms of a plan."""
    sound = [arm for arm in arms if not arm["leaking"]]
    tuned = [arm for arm in sound if arm["tuning"]]
    if not tuned or len(tuned) < len(sound):
        return "Learning rates and other settings are as configured, not tuned."
    own = {
        kind: [arm for arm in tuned if arm["tuning"]["kind"] == kind] for kind in (SEARCHED, INHERITED, RATES)
    }
    sentences = []
    if own[SEARCHED]:
        every = "Every arm" if len(own[SEARCHED]) == len(tuned) else f"Each of {named(own[SEARCHED])}"
        space = ", ".join(dict.fromkeys(name for arm in own[SEARCHED] for name in arm["tuning"]["space"]))
        seeds = own_seeds(own[SEARCHED][0]["tuning"])
        sentences.append(
            f"{every} is tuned with the same search ({space}), with {trials(own[SEARCHED])} trials on {seeds}."
            if not (apart := unlike(own[SEARCHED]))
            else f"{every} is tuned ({space}), but NOT WITH THE SAME SEARCH: the arms differ in {listed(apart)}."
        )
    if own[INHERITED]:
        files = {arm["tuning"].get("inherited_file") for arm in own[INHERITED]} - {None}
        source = listed(sorted(files)) if files else "the nearest searched arm with their optimizer"
        sentences.append(
            f"The others inherit the settings of {source}, and have their learning rate tuned with "
            f"{trials(own[INHERITED])} trials."
        )
    if own[RATES]:
        whose = "Of the rest, only the learning rate" if sentences else "Each arm's learning rate"
        seeds = own_seeds(own[RATES][0]["tuning"])
        sentences.append(f"{whose} is tuned with {trials(own[RATES])} trials on {seeds}.")
        sentences.append("All other settings are as configured.")
    elsewhere = dict.fromkeys(arm["tuning"].get("found_elsewhere", "") for arm in tuned)
    sentences += [f"NOT TUNED HERE: these settings were found {words}." for words in elsewhere if words]
    sentences += [edges(tuned), *beside(own[SEARCHED])]
    runs = sum(arm["tuning"]["runs"] for arm in tuned)
    cost = sum(arm["tuning"].get("cpu_seconds", 0.0) for arm in tuned)
    sentences.append(
        f"The tuning took {runs:,} runs" + (f", {in_time(cost)} of a processor." if cost else ".")
    )
    return " ".join(sentences)


def unlike(arms: Sequence[dict[str, Any]]) -> list[str]:
    """In what the searches of arms differ: those of a file may have been put together from several."""
    return [
        words
        for key, words in (("design", "design"), ("trials", "trials"), ("seeds", "tuning seeds"))
        if any(arm["tuning"][key] != arms[0]["tuning"][key] for arm in arms)
    ]


def own_seeds(record: dict[str, Any]) -> str:
    """The seeds of a record, which are never those that arms are judged by."""
    count = max(len(record["seeds"]), 1)
    if count > 1:
        return f"{count} random seeds that are used only for tuning, by their mean"
    return "one random seed that is used only for tuning"


def edges(arms: Sequence[dict[str, Any]]) -> str:
    """Which optima are at an edge of what was tried."""
    at_edge = [arm for arm in arms if is_at_edge(arm["tuning"])]
    if not at_edge:
        return "Every optimum lies inside what was tried."
    if len(at_edge) > NAMED_AT_MOST:
        return f"{len(at_edge)} arms, marked below, have their optimum at the edge of what was tried."
    places = [f"{arm['name']} ({', '.join(is_at_edge(arm['tuning']))})" for arm in at_edge]
    return f"At the edge of what was tried: {listed(places)}."


def beside(searched: Sequence[dict[str, Any]]) -> list[str]:
    """The sentence, if there is one, on steps to a lower loss that the searches have not made together."""
    found = beside_sentence([(arm["name"], arm["tuning"]) for arm in searched])
    return [found] if found else []


def named(arms: Sequence[dict[str, Any]]) -> str:
    """The arms' names, or how many there are."""
    return listed(arm["name"] for arm in arms) if len(arms) <= NAMED_AT_MOST else f"{len(arms)} arms"


def trials(arms: Sequence[dict[str, Any]]) -> str:
    """How many trials each arm had: every number that occurs, in order."""
    return " or ".join(map(str, sorted({arm["tuning"]["trials"] for arm in arms})))
