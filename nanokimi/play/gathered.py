"""The report of any finished runs: of one folder its own, of several one that holds the arms of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanokimi.compare.again import collect
from nanokimi.compare.verdict import pairs_of, verdict
from nanokimi.errors import UserError
from nanokimi.play.places import REPORT_FILE, metrics_of
from nanokimi.report.page import make_context, render
from nanokimi.report.records import SCHEMA_VERSION, Arm, Record, Run
from nanokimi.runtime.files import read_json, read_json_lines
from nanokimi.runtime.text import one_line

SAME_TEXT = ("sha256", "test_tokens", "test_text_bytes", "vocab_size")
"""Facts of the data that must agree, or the losses are about different texts."""


def report_page(folders: Sequence[Path]) -> str:
    """The page of a report on these folders' runs.

    Raises UserError if one has not ended, is damaged, or was scored on another text than the first.
    """
    try:
        report, arms = gathered(folders)
        return render(make_context(report, arms))
    except (UserError, OSError):
        raise
    except Exception as error:  # a record without a number, or with a word in its place
        raise UserError(
            f"These records cannot be shown ({type(error).__name__}: {one_line(error)})."
        ) from None


def gathered(folders: Sequence[Path]) -> tuple[Record, list[Arm]]:
    """report.json's content and the arms, over all folders. Raises UserError as `report_page` does."""
    reports = [(folder, report_of(folder)) for folder in folders]
    first, report = reports[0]
    if len(reports) == 1:
        return report, arms_of(report, first)
    for folder, other in reports[1:]:
        if any(other["data"].get(fact) != report["data"].get(fact) for fact in SAME_TEXT):
            raise UserError(
                f"{folder.name} was scored on another text or with other tokens than {first.name}: "
                "their losses cannot be compared."
            )
    rows: list[Record] = []
    runs: list[Record] = []
    for folder, one in reports:
        taken = {row["name"] for row in rows}
        for row in one["arms"]:
            name = row["name"] if row["name"] not in taken else f"{row['name']} ({folder.name})"
            rows.append({**row, "name": name})
            own = [run for run in one["runs"] if run["arm"] == row["name"]]
            runs += [{**run, "arm": name, "folder": str(folder / run["folder"])} for run in own]
    return {**report, **joined(rows, runs, reports)}, arms_of({"arms": rows, "runs": runs}, Path())


def joined(rows: list[Record], runs: list[Record], reports: Sequence[tuple[Path, Record]]) -> Record:
    """The entries of a report that depend on all of its arms."""
    baselines = reports[0][1]["data"]["baselines"]
    if len({tuple(row["seeds"]) for row in rows}) == 1:
        pairs = pairs_of(rows, runs)
        found = verdict(rows, pairs, baselines, None)
    else:
        pairs, losses = [], ", ".join(f"{row['name']} {row['test_loss']:.4f}" for row in rows)
        sentence = f"{losses} nats per token of the test text. Not ranked: the runs have different seeds."
        found = {"winner": None, "ranked": not any(row["leaking"] for row in rows), "sentence": sentence}
    return {
        "arms": rows,
        "runs": runs,
        "comparisons": [{**pair, "text95": None} for pair in pairs],
        "verdict": found,
        "spread": None,
        "match": {"sentence": "These runs were not started together: nothing was matched."},
        "segments": [],
        "command": "; ".join(str(one["command"]) for _, one in reports),
        "seeds": rows[0]["seeds"],
    }


def report_of(folder: Path) -> Record:
    """A folder's report.json, or what it would be. Raises UserError if the folder's runs have not ended."""
    if not (folder / REPORT_FILE).is_file():
        return collect(folder)
    report: dict[str, Any] = read_json(folder / REPORT_FILE)
    if report.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{folder.name} was written by another version of nanokimi: make its report again first."
        )
    return report


def arms_of(report: Record, folder: Path) -> list[Arm]:
    """The arms of a report whose runs' folders are below `folder`, or are whole paths."""
    arms = []
    for slot, row in enumerate(report["arms"]):
        runs = []
        for entry in report["runs"]:
            if entry["arm"] == row["name"]:
                found = metrics_of(folder / entry["folder"])
                records = read_json_lines(found[0]) if found else []
                runs.append(Run(seed=entry["seed"], metadata=entry, records=records))
        arms.append(Arm(name=row["name"], slot=slot, metadata=row, runs=tuple(runs)))
    return arms
