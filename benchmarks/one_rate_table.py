"""What changed when AdamW alone got a rate of its own for embeddings and head: the results before and after.

docs/results/old/one-rate.jsonl has the arms with AdamW as they were searched with one rate for all weights, and every
verdict of those results. docs/results/old/two-rates.jsonl has what came between: eleven pairs of rates, tried by hand
for the default comparison's NanoGPT (`benchmarks/two_rates.py` of commit 13b8286), the best of them judged.
"""

from __future__ import annotations

from functools import cache
from statistics import fmean, stdev
from typing import Any

from recorded import RESULTS, Row, judged
from study_tables import study_report

from nanokimi.measure.stats import NOT_DISTINGUISHABLE
from nanokimi.runtime.files import read_json_lines

TITLES = {
    "tales-short": "default comparison",
    "shakespeare-char": "nanoGPT's CPU recipe",
    "ladder-tales": "ablation study, short stories",
    "ladder-shakespeare": "ablation study, tinyshakespeare",
    "scale-tales": "four sizes, short stories",
}
COMPARISONS = ("tales-short", "shakespeare-char")
SEARCHED_LONGER = ("ladder-tales", "ladder-shakespeare", "scale-tales")
"""Studies whose arms were searched once more since then, with more trials (benchmarks/short_search_table.py)."""
NAMED = {"arm": "arm", "effect": "name"}
"""The entry that names a line of each kind."""


@cache
def before(kind: str, study: str, file: str = "one-rate") -> dict[str, Row]:
    """The arms or effects of a result as they once were, by name."""
    rows = read_json_lines(RESULTS / "old" / f"{file}.jsonl")
    return {row[NAMED[kind]]: row for row in rows if (row["kind"], row["study"]) == (kind, study)}


def arms_after(study: str) -> dict[str, Row]:
    """Each arm's losses over the seeds, and the settings found for it, with the two rates."""
    if study in COMPARISONS:
        head, runs, _, _ = judged(study)
        return {
            arm: {"losses": [run["test_loss"] for run in runs if run["arm"] == arm], "best": search["best"]}
            for arm, search in head["search"].items()
        }
    if study in SEARCHED_LONGER:
        rows = before("arm", study, "short-search").values()
        return {row["arm"]: {"losses": row["test_losses"], "best": row["best"]} for row in rows}
    rows = [row for row in study_report(RESULTS / f"{study}.jsonl")["arms"] if row["budget"] == "tokens"]
    return {row["name"]: {"losses": row["losses"], "best": row["tuning"]["best"]} for row in rows}


def verdicts_after(study: str) -> dict[str, Row]:
    """Each comparison of a result, by name."""
    if study in COMPARISONS:
        return {f"{pair['first']} - {pair['second']}": pair for pair in judged(study)[3]}
    if study in SEARCHED_LONGER:
        return before("effect", study, "short-search")
    return {one["name"]: one for one in study_report(RESULTS / f"{study}.jsonl")["effects"]}


def one_rate_arms_table() -> str:
    """Each arm with AdamW: its losses with one rate for all weights, and now, with the rates that were found."""
    lines = [
        "| result | arm with AdamW | one rate | a rate of its own for embeddings and head | `optim.lr`, "
        "`optim.adamw_lr` |",
        "|---|---|---|---|---|",
    ]
    for study, title in TITLES.items():
        now = arms_after(study)
        for name, row in before("arm", study).items():
            arm = now[name]
            rates = f"{arm['best']['optim.lr']:g}, {arm['best']['optim.adamw_lr']:g}"
            lines.append(
                f"| {title} | {name} | {spread(row['test_losses'])} | {spread(arm['losses'])} | {rates} |"
            )
            title = ""
    return "\n".join(lines)


def spread(losses: list[float]) -> str:
    """Mean and deviation over seeds."""
    return f"{fmean(losses):.4f} +- {stdev(losses):.4f}"


def one_rate_verdicts_table() -> str:
    """Each verdict that changed."""
    lines = [
        "| result | comparison | then: difference, interval, p after Holm | now |",
        "|---|---|---|---|",
    ]
    for study, title in TITLES.items():
        now = verdicts_after(study)
        for name, row in before("effect", study).items():
            if verdict_of(row) != verdict_of(now[name]):
                lines.append(f"| {title} | {name} | {told(row)} | {told(now[name])} |")
                title = ""
    return "\n".join(lines)


def verdict_of(one: dict[str, Any]) -> str:
    """Lower, higher, or not distinguishable."""
    words = str(one["words"])
    return NOT_DISTINGUISHABLE if words.startswith(NOT_DISTINGUISHABLE) else words.split(" by ")[0]


def told(one: dict[str, Any]) -> str:
    """A difference with its interval, p and verdict."""
    low, high = one["ci95"]
    words = str(one["words"]).split(" by ")[0]
    return f"{one['mean']:+.3f} ({low:+.3f} to {high:+.3f}), p {one['holm_p']:.3f}: {words}"


def gain() -> str:
    """By how much a rate of its own lowers the loss of the default comparison's NanoGPT with AdamW."""
    losses = before("arm", "tales-short")["NanoGPT"]["test_losses"]
    return f"{fmean(losses) - fmean(arms_after('tales-short')['NanoGPT']['losses']):.3f}"


def lead_before() -> str:
    """NanoKimi's lead over NanoGPT with AdamW at one rate in the default comparison."""
    row = before("effect", "tales-short")["NanoKimi - NanoGPT"]
    low, high = row["ci95"]
    return f"{-row['mean']:.3f} nats (95% interval {-high:.3f} to {-low:.3f})"


def by_hand() -> float:
    """The mean test loss of the default comparison's NanoGPT with the best rates that were tried by hand."""
    rows = read_json_lines(RESULTS / "old" / "two-rates.jsonl")
    return fmean(row["test_loss"] for row in rows if "test_loss" in row and row["embedding"] != row["other"])


def lead_over_by_hand() -> str:
    """NanoKimi's lead over it."""
    return f"{by_hand() - fmean(arms_after('tales-short')['NanoKimi']['losses']):.3f}"
