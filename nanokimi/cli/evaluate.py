"""`nanokimi evaluate`: the scores of trained models, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from nanokimi.cli.options import one_run, take_options
from nanokimi.errors import UserError
from nanokimi.runtime.text import visible, visible_line

SOURCE_COLUMNS = ("model", "seed", "text", "tokens", "nats per token", "bits per byte", "bits per char")
COLUMNS = ("model", "seed", "tokens", "nats per token", "perplexity", "bits per byte", "bits per char", "run")


def run_evaluate(arguments: list[str]) -> int:
    """`nanokimi evaluate`."""
    types = {"data": str, "dataset.text_column": str, "part": str, "checkpoint": str, "device": str}
    options, rest = take_options(arguments, {**types, "json": bool})
    folder = one_run(rest)
    part = str(options.get("part", "val" if "data" in options else "test"))
    if part not in ("val", "test"):
        raise UserError(f"--part is {part}: expected val or test")
    if "data" in options and "part" in options:
        raise UserError("--data names another text, which is scored whole: leave out --part")
    if "dataset.text_column" in options and "data" not in options:
        raise UserError("--dataset.text_column is for another text: name it with --data, or leave this out")
    from nanokimi.api import scores_of
    from nanokimi.train.run_folder import open_run, runs_in

    checkpoint = str(options.get("checkpoint", "final"))
    device, text, column = (
        str(options[name]) if name in options else None for name in ("device", "data", "dataset.text_column")
    )
    records: list[dict[str, Any]] = []
    for run_folder in runs_in(folder):
        run = open_run(run_folder, device, checkpoint)
        records.append(scores_of(run, part, text, column))
        if "json" in options:
            print(json.dumps(records[-1]), flush=True)
    if "json" not in options:
        print(visible(evaluation_text(records, part)), end="")
    return 0


def evaluation_text(records: Sequence[dict[str, Any]], part: str) -> str:
    """One line for each model, from the objects that `--json` prints, and what has to be said about the text."""
    text = aligned([COLUMNS, *(cells_of(record, part) for record in records)])
    by_source = [cells for record in records for cells in source_cells(record, part)]
    if by_source:
        text += ["", *aligned([SOURCE_COLUMNS, *by_source])]
    notes = dict.fromkeys(record["split_note"] for record in records if "split_note" in record)
    return "\n".join([*text, *notes]) + "\n"


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    widths = [max(len(line[i]) for line in lines) + 2 for i in range(len(lines[0]))]
    return [
        "".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def source_cells(record: dict[str, Any], part: str) -> list[tuple[str, ...]]:
    """The cells of one model's lines for the texts of a mixture."""
    return [
        (
            visible_line(record["name"]),
            str(record["seed"]),
            name,
            f"{one['tokens']:,}",
            f"{one['loss']:.4f}",
            f"{one['bits_per_byte']:.4f}",
            f"{one['bits_per_char']:.4f}",
        )
        for name, one in record.get(f"{part}_sources", {}).items()
    ]


def cells_of(record: dict[str, Any], part: str) -> tuple[str, ...]:
    """The cells of one model's line."""
    return (
        visible_line(record["name"]),
        str(record["seed"]),
        f"{record[f'{part}_tokens']:,}",
        f"{record[f'{part}_loss']:.4f}",
        f"{record[f'{part}_perplexity']:.2f}",
        f"{record[f'{part}_bits_per_byte']:.4f}",
        f"{record[f'{part}_bits_per_char']:.4f}",
        str(record["folder"]),
    )
