"""The tables of a recorded study (`nanokimi ladder`, `scale`), made by the functions that made its own report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nanokimi.compare.scale import curves_of
from nanokimi.compare.study import report_of
from nanokimi.compare.study_output import matches, sections
from nanokimi.runtime.files import read_json_lines


def study_report(path: Path) -> dict[str, Any]:
    """What study.json holds, from the lines alone."""
    *runs, plan = read_json_lines(path)
    results = {line["key"]: line for line in runs}
    return report_of(plan, results, curves_of if plan["study"] == "scale" else lambda report: {})


def study_block(path: Path) -> str:
    """Command, machine, what was tuned how, and every table."""
    report = study_report(path)
    machine, settings, data = report["machine"], report["settings"], report["data"]
    floor = data["attainable_floor"]
    lines = [
        f"`{machine['command']}`, commit {machine['commit'][:7]}, {machine['time'][:10]}, {machine['cores']} cores "
        f"of an {machine['processor']}, {settings['dtype']}; {settings['steps']:,} steps of {settings['batch_size']} x "
        f"{settings['context_length']} tokens, {data['train_tokens']:,} tokens to train on"
        + ("." if floor is None else f"; attainable floor {floor:.4f} nats per token."),
        "",
        *(f"- {label}" for label in report["labels"]),
        *(f"- {line}" for line in matches(report)[:1]),
    ]
    lines += [f"- **{sentence}**" for sentence in report.get("sentences", [])]
    for title, head, rows in sections(report):
        lines += ["", f"**{title}**", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)
