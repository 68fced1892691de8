"""The scores of `nanokimi evaluate` as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nanokimi.report.units import count

COLUMNS = ("model", "seed", "tokens", "nats per token", "perplexity", "bits per byte", "bits per char", "run")


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
        count(record[f"{part}_tokens"]),
        f"{record[f'{part}_loss']:.4f}",
        f"{record[f'{part}_perplexity']:.2f}",
        f"{record[f'{part}_bits_per_byte']:.4f}",
        f"{record[f'{part}_bits_per_char']:.4f}",
        str(record["folder"]),
    )
