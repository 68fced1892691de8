"""`nanokimi evaluate`: the scores of trained models, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanokimi.cli.options import one_target, take_options
from nanokimi.errors import UserError

COLUMNS = ("model", "seed", "tokens", "nats per token", "perplexity", "bits per byte", "bits per char", "run")


def run_evaluate(arguments: list[str]) -> int:
    """`nanokimi evaluate`."""
    types = {"data": str, "dataset.text_column": str, "part": str, "checkpoint": str, "device": str}
    options, rest = take_options(arguments, {**types, "json": bool})
    folder = Path(one_target(rest, "run folder"))
    part = str(options.get("part", "val" if "data" in options else "test"))
    if part not in ("val", "test"):
        raise UserError(f"--part is {part}: expected val or test")
    if "data" in options and "part" in options:
        raise UserError("--data names another text, which is scored whole: leave out --part")
    if "dataset.text_column" in options and "data" not in options:
        raise UserError("--dataset.text_column is for another text: name it with --data, or leave this out")
    from nanokimi.data.parts import split_note
    from nanokimi.data.sources import absolute, is_name
    from nanokimi.data.store import as_validation_text
    from nanokimi.measure.evaluate import evaluate
    from nanokimi.train.run_folder import open_run, runs_in

    checkpoint = str(options.get("checkpoint", "final"))
    text = str(options.get("data", ""))
    text = text if not text or is_name(text) else absolute(text)
    column = str(options["dataset.text_column"]) if "dataset.text_column" in options else None
    records: list[dict[str, Any]] = []
    for run_folder in runs_in(folder):
        run = open_run(run_folder, str(options["device"]) if "device" in options else None, checkpoint)
        usual = run.config.dataset.text_column
        data = as_validation_text(run.data, text, column, usual) if "data" in options else run.data
        train = run.config.train
        scores = evaluate(run.model, data, train.context_length, train.eval_batch_size, part=part).record()
        head = {"name": run.config.title, "seed": run.config.seed, "folder": str(run_folder)}
        tokens = {f"{part}_tokens": len(data.scored(part).ids)}
        note = None if "data" in options else split_note(data.metadata)
        records.append({**head, **tokens, **scores, **({"split_note": note} if note else {})})
        if "json" in options:
            print(json.dumps(records[-1]), flush=True)
    if "json" not in options:
        print(evaluation_text(records, part), end="")
    return 0


def evaluation_text(records: Sequence[dict[str, Any]], part: str) -> str:
    """One line for each model, from the objects that `--json` prints, and what has to be said about the text."""
    lines = [COLUMNS, *(cells_of(record, part) for record in records)]
    widths = [max(len(line[i]) for line in lines) + 2 for i in range(len(COLUMNS))]
    text = ["".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    notes = dict.fromkeys(record["split_note"] for record in records if "split_note" in record)
    return "\n".join([*(line.rstrip() for line in text), *notes]) + "\n"


def cells_of(record: dict[str, Any], part: str) -> tuple[str, ...]:
    """The cells of one model's line."""
    return (
        str(record["name"]),
        str(record["seed"]),
        f"{record[f'{part}_tokens']:,}",
        f"{record[f'{part}_loss']:.4f}",
        f"{record[f'{part}_perplexity']:.2f}",
        f"{record[f'{part}_bits_per_byte']:.4f}",
        f"{record[f'{part}_bits_per_char']:.4f}",
        str(record["folder"]),
    )
