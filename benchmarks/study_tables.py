"""The tables of a recorded study (`nanokimi ladder`, `scale`), made by the functions that made its own report."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from recorded import RESULTS

from nanokimi.measure.stats import SeedDifference, paired_t
from nanokimi.runtime.files import read_json_lines
from nanokimi.study.output import sections
from nanokimi.study.scale import curves_of
from nanokimi.study.study import report_of

FOLDED = ("Arms", "What was searched")
"""Tables that the documents fold away."""
OPTIONS_NOW = {"--readings": "--budgets"}
"""Options of recorded commands that have another name today."""


@cache
def study_report(path: Path) -> dict[str, Any]:
    """What study.json holds, from the lines alone."""
    *runs, plan = read_json_lines(path)
    results = {line["key"]: line for line in runs}
    return report_of(plan, results, curves_of if plan["study"] == "scale" else lambda report: {})


def study_block(path: Path) -> str:
    """Command, machine, how each arm was tuned, and every table."""
    report = study_report(path)
    machine, settings, data = report["machine"], report["settings"], report["data"]
    floor = data["attainable_floor"]
    command = " ".join(OPTIONS_NOW.get(word, word) for word in machine["command"].split(" "))
    lines = [
        f"`{command}`, commit {machine['commit'][:7]}, {machine['time'][:10]}, {machine['cores']} cores "
        f"of an {machine['processor']}, {settings['dtype']}; {settings['steps']:,} steps of {settings['batch_size']} x "
        f"{settings['context_length']} tokens, {data['train_tokens']:,} tokens to train on"
        + ("." if floor is None else f"; attainable entropy floor {floor:.4f} nats per token."),
        "",
        *(f"- {label}" for label in report["labels"]),
    ]
    lines += [f"- **{sentence}**" for sentence in report.get("sentences", [])]
    for title, head, rows in sections(report):
        table = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        table += ["| " + " | ".join(row) + " |" for row in rows]
        if title.startswith(FOLDED):
            lines += ["", f"<details><summary>{title}</summary>", "", *table, "", "</details>"]
        else:
            lines += ["", f"**{title}**", "", *table]
    return "\n".join(lines)


def old_differences(path: Path) -> dict[str, SeedDifference]:
    """Each comparison, by name, of a study recorded before all arms had the same search, with its interval."""
    *runs, plan = read_json_lines(path)
    losses = {line["key"]: line["val_loss"] for line in runs}
    keys = {arm["name"]: arm["runs"] for arm in plan["arms"]}
    found = {}
    for one in plan["comparisons"]:
        by_arm = [
            weight * np.array([losses[key] for key in keys[name][one["budget"]]])
            for name, weight in one["weights"].items()
        ]
        total_S = list(np.sum(by_arm, axis=0))
        found[one["name"]] = paired_t(total_S, [0.0] * len(total_S))
    return found


def old_and_new(old: Path, new: Path) -> str:
    """The comparisons made by both studies, side by side."""
    before = old_differences(old)
    lines = [
        "| | earlier claim | its 95% interval | same search for every arm | 95% interval (decides) | verdict now |",
        "|---|---|---|---|---|---|",
    ]
    for effect in study_report(new)["effects"]:
        if effect["name"] not in before or effect["mean"] is None:
            continue
        was, (low, high) = before[effect["name"]], effect["ci95"]
        lines.append(
            f"| {effect['name']} | {was.mean:+.3f} | {was.low:+.3f} to {was.high:+.3f} | {effect['mean']:+.3f} "
            f"| {low:+.3f} to {high:+.3f} | {effect['words']} |"
        )
    return "\n".join(lines)


def pairing_table(studies: dict[str, Path]) -> str:
    """What pairing by seed is worth, and what the searches' noise costs, in recorded studies."""
    lines = [
        "| | arms | correlation of two arms over the seeds, mean of all pairs | interval with the searches' noise, "
        "over that without (median) |",
        "|---|---|---|---|",
    ]
    for name, path in studies.items():
        *runs, plan = read_json_lines(path)
        losses = {line["key"]: line["test_loss"] for line in runs}
        # arms whose every run ended the same are one arm
        arms = {tuple(losses[key] for key in arm["runs"]["tokens"]) for arm in plan["arms"]}
        correlation = np.mean([np.corrcoef(a, b)[0, 1] for a, b in combinations(sorted(arms), 2)])
        wider = []
        for effect in study_report(path)["effects"]:
            alone = paired_t(effect["per_seed"], [0.0] * len(effect["per_seed"]))
            if alone.high > alone.low:
                wider.append((effect["ci95"][1] - effect["ci95"][0]) / (alone.high - alone.low))
        lines.append(f"| {name} | {len(arms)} | {correlation:.2f} | {np.median(wider):.1f} |")
    return "\n".join(lines)


def false_winners_table() -> str:
    """How often equal arms that were tuned apart have a winner (benchmarks/false_winners.py)."""
    head, *rows = read_json_lines(RESULTS / "false-winners.jsonl")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["kind"] == "bowl":
            what = f"whole searches of {row['trials']} trials, {row['seeds']} seeds"
            groups.setdefault((what, f"{row['height']:,} deviations high"), []).append(row)
        else:
            groups.setdefault((f"the recorded trials: {row['study']}", ""), []).append(row)
    lines = [
        "| two equal arms, tuned apart | truth | a winner (wanted: 5%) | without the half run for each pattern "
        "| without the searches' noise | p below 0.05 / 39 (wanted: 0.13%) | the same without the half runs |",
        "|---|---|---|---|---|---|---|",
    ]
    for (what, truth), found in groups.items():
        tries = sum(row["tries"] for row in found)
        shares = [
            f"{sum(row[key] for row in found) / tries:.1%}"
            if all(key in row for row in found)
            else "not counted"
            for key in (
                "winners",
                "without_share",
                "without_search",
                "among_39",
                "among_39_without_share",
            )
        ]
        truth = truth or f"{len(found)} arms, the mean"
        lines.append(f"| {what} | {truth} | " + " | ".join(shares) + " |")
    return "\n".join([*lines, "", f"`{head['command']}`, commit {head['commit'][:7]}, {head['time'][:10]}."])
