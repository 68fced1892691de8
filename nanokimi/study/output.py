"""A study's results as text: terminal, Markdown, CSV, JSON; with the page and plots that `report` makes of the JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanokimi.report.metrics import STUDY_TEXT
from nanokimi.report.study_groups import grouped, names_by_match
from nanokimi.report.study_search import hyperparameter_rows
from nanokimi.runtime.drawing import draw_or_say
from nanokimi.runtime.files import write_atomic, write_json
from nanokimi.study.tuning_record import INHERITED, SEARCHED, is_at_edge

EFFECT_HEAD = ("", "difference", "95% t interval (decides)", "Holm p", "bootstrap (shown)", "verdict")
ARM_HEAD = ("arm", "loss", *(column.title for column in STUDY_TEXT), "lr (trials)")
SEARCH_HEAD = (
    "arm",
    "hyperparameter",
    "searched from",
    "to",
    "best",
    "place",
    "loss around it, by one hyperparameter at a time",
)


def effect_cells(effect: dict[str, Any]) -> list[str]:
    """The cells of one comparison."""
    if effect["mean"] is None:
        return [effect["name"], "", "", "", "", effect["words"]]

    def interval(pair: Sequence[float] | None) -> str:
        return "one seed: none" if pair is None else f"{pair[0]:+.4f} to {pair[1]:+.4f}"

    p = effect["holm_p"]
    shown = f"{p:.3f}" if p >= 0.001 else "<0.001"
    intervals = (interval(effect["ci95"]), shown, interval(effect["bootstrap95"]))
    return [effect["name"], f"{effect['mean']:+.4f}", *intervals, effect["words"]]


def arm_cells(row: dict[str, Any]) -> list[str]:
    """The cells of one arm."""
    nothing = [""] * len(STUDY_TEXT)
    if row["leaking"]:
        return [row["name"], f"LEAKING: {row['leaking']}", *nothing, ""]
    lr = f"{row['lr']:g} ({tuning_cell(row['tuning'])})"
    if row["test_loss"] is None:
        return [row["name"], f"{row['diverged']} of {row['seeds']} diverged", *nothing, lr]
    loss = f"{row['test_loss']:.4f}" + ("" if row["deviation"] is None else f" +- {row['deviation']:.4f}")
    values = [(column, row.get(column.key)) for column in STUDY_TEXT]
    cells = ["" if value is None else column.show(value) for column, value in values]
    return [row["name"], loss, *cells, lr]


def tuning_cell(tuning: dict[str, Any] | None) -> str:
    """How many trials an arm had, and how its settings were found."""
    if tuning is None:
        return "not tuned"
    text = str(tuning["trials"])
    if tuning["kind"] == SEARCHED:
        text += ", searched"
    elif tuning["kind"] == INHERITED:
        text += f", else {tuning.get('inherited_file') or tuning['inherited_from']}'s settings"
    edge = is_at_edge(tuning)
    if edge:
        text += ", at the edge" + (f" in {', '.join(edge)}" if tuning["kind"] == SEARCHED else "")
    return text


def search_rows(report: dict[str, Any]) -> list[list[str]]:
    """What was searched, with a row for each arm and hyperparameter."""
    rows = []
    for arm in report["arms"]:
        record = arm["tuning"]
        if arm["budget"] != "tokens" or arm["leaking"] or not record or record["kind"] != SEARCHED:
            continue
        for row in hyperparameter_rows(record):
            found = [row[key] for key in ("hyperparameter", "low", "high", "best", "place", "curve")]
            rows.append([arm["name"], *found])
    return rows


def sections(report: dict[str, Any]) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Every table as (title, head, rows)."""
    found: list[tuple[str, Sequence[str], list[list[str]]]] = []
    for _, group, effects in grouped(report["effects"]):
        found.append((group.heading, EFFECT_HEAD, [effect_cells(one) for one in effects]))
    head = list(ARM_HEAD)
    rows = [arm_cells(row) for row in report["arms"] if row["budget"] == "tokens"]
    found.append(("Arms, at equal tokens (nats per token)", head, rows))
    for budget in dict.fromkeys(row["budget"] for row in report["arms"] if row["budget"] != "tokens"):
        rows = [arm_cells(row) for row in report["arms"] if row["budget"] == budget]
        found.append((f"Arms, at equal {'FLOPs' if budget == 'flops' else budget}", head, rows))
    rows = search_rows(report)
    if rows:
        found.append(("What was searched", SEARCH_HEAD, rows))
    return found


def matches(report: dict[str, Any]) -> list[str]:
    """What the arms of each comparison are matched in; comparisons with the same answer share a line."""
    return [f"{', '.join(names)}: {text}." for text, names in names_by_match(report["effects"]).items()]


def as_text(report: dict[str, Any]) -> str:
    """The report as text for the terminal."""
    lines = [report["title"], "", *report["labels"], ""]
    for title, head, rows in sections(report):
        table = [list(head), *rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(head))]
        lines += [title]
        for row in table:
            lines.append(
                "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            )
        lines.append("")
    lines += ["What is matched (within 2%)", *(f"  {line}" for line in matches(report)), ""]
    lines += report.get("sentences", [])
    return "\n".join(lines).rstrip() + "\n"


def as_markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [f"# {report['title']}", "", *(f"- {label}" for label in report["labels"]), ""]
    lines += [f"    {report['machine']['command']}", ""]
    lines += [f"**{sentence}**\n" for sentence in report.get("sentences", [])]
    for title, head, rows in sections(report):
        lines += [f"## {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines.append("")
    lines += ["## What is matched", "", *(f"- {line}" for line in matches(report)), ""]
    return "\n".join(lines)


def as_csv(report: dict[str, Any]) -> str:
    """The comparisons as CSV, one row each, with unrounded numbers."""
    fields: tuple[str, ...] = (
        "family",
        "budget",
        "name",
        "mean",
        "low",
        "high",
        "p",
        "holm_p",
        "boot_low",
        "boot_high",
    )
    fields += ("seeds", "words", "match", "labels")
    text = io.StringIO()
    writer = csv.DictWriter(text, fields)
    writer.writeheader()
    for one in report["effects"]:
        row = {key: one.get(key) for key in fields}
        row["low"], row["high"] = one.get("ci95") or (None, None)
        row["boot_low"], row["boot_high"] = one.get("bootstrap95") or (None, None)
        writer.writerow({**row, "labels": " ".join(report["labels"])})
    return text.getvalue()


def write_outputs(folder: Path, report: dict[str, Any]) -> None:
    """Write study.json, study.md, study.csv, study.html and the plots."""
    from nanokimi.report.study_page import write_study_page

    write_json(folder / "study.json", report)
    write_atomic(folder / "study.md", as_markdown(report))
    write_atomic(folder / "study.csv", as_csv(report))
    draw_or_say(lambda: write_study_page(folder), folder, f"nanokimi report {folder}")
