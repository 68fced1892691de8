"""What a comparison prints: a table of the arms, and one by segments of the training."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean, median
from typing import Any

SEGMENTS = 8


def _loss(arm: dict[str, Any]) -> str:
    spread = "" if arm["deviation"] is None else f" +- {arm['deviation']:.4f}"
    return f"{arm['test_loss']:.4f}{spread}"


def _shown(key: str, form: str, unit: str = "") -> Callable[[dict[str, Any]], str]:
    """A function that writes a number of an arm, or a dash if it was not measured."""
    return lambda arm: "-" if arm[key] is None else f"{arm[key]:{form}}{unit}"


SUMMARY_ROWS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("test loss (nats per token)", _loss),
    ("bits per byte", _shown("test_bits_per_byte", ".4f")),
    ("validation loss", _shown("val_loss", ".4f")),
    ("active / total parameters", lambda arm: f"{arm['params_active']:,} / {arm['params_total']:,}"),
    ("training tokens", _shown("tokens", ",")),
    ("training time", lambda arm: f"{arm['train_seconds']:.1f} s ({arm['ms_per_step']:.1f} ms per step)"),
    ("peak memory", lambda arm: f"{arm['peak_memory_bytes'] / 1e6:,.0f} MB"),
    ("decode", _shown("decode_ms_per_token", ".2f", " ms per token")),
    ("audit", lambda arm: "causal" if arm["leaking"] is None else arm["leaking"]),
)


def summary_rows(arms: list[dict[str, Any]]) -> list[tuple[str, Callable[[dict[str, Any]], str]]]:
    """The rows of the table; those of a mixture's texts come after that of all of them."""
    rows = list(SUMMARY_ROWS)
    for place, name in enumerate(arms[0].get("test_sources", ()), start=2):
        rows.insert(place, (f"  {name}", _source(name)))
    return rows


def _source(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda arm: f"{arm['test_sources'][name]['bits_per_byte']:.4f}"


def summary_table(arms: list[dict[str, Any]], width: int | None = None) -> str:
    """The main numbers of each arm (means over its seeds) as lines of text, none of them longer than `width`.

    If the arms do not fit beside each other, they stand one below the other.
    """
    rows = [["", *(arm["name"] for arm in arms)]]
    shown = summary_rows(arms)
    rows += [[title, *(show(arm) for arm in arms)] for title, show in shown]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    if width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        below = [[f"\n{arm['name']}"] + [f"  {title}: {show(arm)}" for title, show in shown] for arm in arms]
        return "\n".join(line for lines in below for line in lines) + "\n"
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def arm_segments(records: dict[str, list[dict[str, Any]]], tokens_per_step: int) -> list[dict[str, Any]]:
    """Training loss and speed of each arm over equal blocks of steps, with the validation loss at their ends."""
    last = max((r["step"] for rows in records.values() for r in rows), default=0)
    edges = sorted({round(last * i / SEGMENTS) for i in range(SEGMENTS + 1)})
    rows = []
    for start, end in zip(edges, edges[1:], strict=False):
        arms = {}
        for name, arm_records in records.items():
            inside = [r for r in arm_records if r["kind"] == "train" and start < r["step"] <= end]
            scored = [r for r in arm_records if r["kind"] == "eval" and start < r["step"] <= end]
            if inside:
                ms = median(r["step_ms"] for r in inside)
                arms[name] = {
                    "train_loss": mean(r["loss"] for r in inside),
                    "ms_per_step": ms,
                    "tokens_per_second": tokens_per_step / ms * 1e3,
                    "val_loss": scored[-1]["val_loss"] if scored else None,
                }
        rows.append({"from_step": start + 1, "to_step": end, "arms": arms})
    return rows
