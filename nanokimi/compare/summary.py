"""From results to a verdict: paired differences, the sentence on top of the report, the table by segment of steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import numpy as np

from nanokimi.compare.stats import t_quantile

BLOCKS = 50  # neighbouring windows are alike; their blocks are nearly independent
SEGMENTS = 8


@dataclass(frozen=True)
class PairedDifference:
    """Loss of the first model minus the second's in nats per token, with a 95% interval over the validation text."""

    difference: float
    low: float
    high: float


def paired_difference(first_nats: np.ndarray, second_nats: np.ndarray, tokens: int) -> PairedDifference:
    """Compare two models window by window on the same validation text.

    The windows are averaged over up to 50 stretches of the text and a t interval taken over those. It says how much
    the difference depends on which text was scored; it knows nothing of what another seed would give.
    """
    differences = first_nats - second_nats
    difference = float(differences.sum() / tokens)
    blocks = np.array_split(differences, min(BLOCKS, len(differences)))
    if len(blocks) < 2:
        return PairedDifference(difference, float("-inf"), float("inf"))
    # stretches differ by a window in length, so each is held against what its length alone would give
    excess = np.array([block.sum() - differences.mean() * len(block) for block in blocks])
    spread = np.sqrt((excess**2).sum() * len(blocks) / (len(blocks) - 1)) / tokens
    half = t_quantile(0.975, len(blocks) - 1) * float(spread)
    return PairedDifference(difference, difference - half, difference + half)


def verdict(
    results: list[dict[str, Any]], paired: PairedDifference, baselines: dict[str, dict[str, float | None]]
) -> dict[str, Any]:
    """Which of two arms is better, by how much and at what cost, in one sentence; a leaking arm is never ranked."""
    first, second = results
    leaking = [f"{r['name']} {verdict_word(r)}" for r in results if not r["audit"]["causal"]]
    bounded = np.isfinite(paired.low) and np.isfinite(paired.high)
    base = {
        "difference_nats": paired.difference,
        "ci95_nats": [paired.low, paired.high] if bounded else None,
        "ranked": not leaking,
    }
    if leaking:
        sentence = f"No verdict: {' and '.join(leaking)}; such a loss is void. LEAKING: reading tokens it must not see."
        return {"sentence": sentence, "winner": None, **base}
    distinguishable = paired.low > 0 or paired.high < 0
    if not distinguishable:
        sentence = (
            f"{first['name']} and {second['name']} are not distinguishable with this text and seed: "
            f"{first['val_loss']:.4f} and {second['val_loss']:.4f}, a difference of {_interval(paired)}; "
            f"{first['name']} is trained {_cost(first, second)}"
        )
        return {"sentence": sentence + _warning(results, baselines), "winner": None, **base}
    better, worse = (first, second) if paired.difference < 0 else (second, first)
    shown = paired
    if better is first:  # said as a positive number: how much lower the better one is
        shown = PairedDifference(-paired.difference, -paired.high, -paired.low)
    losses = f"{better['val_loss']:.4f} against {worse['val_loss']:.4f}"
    bits = f"{better['val_bits_per_byte']:.3f} against {worse['val_bits_per_byte']:.3f} bits per byte"
    sentence = (
        f"With this text and seed {better['name']} is better by {_interval(shown)}: {losses}, or {bits}, "
        f"{_cost(better, worse)}"
    )
    if better.get("floor_gap") is not None:
        gaps = f"{better['floor_gap']:.4f} and {worse['floor_gap']:.4f}"
        sentence += f" They stay {gaps} above the floor, the best that any model can do."
    sentence += _warning(results, baselines)
    return {"sentence": sentence, "winner": better["name"], **base}


def _warning(results: list[dict[str, Any]], baselines: dict[str, dict[str, float | None]]) -> str:
    five_gram = baselines["5-gram"]["val_loss"]
    if five_gram is None or min(r["val_loss"] for r in results) <= five_gram:
        return ""
    return " Neither beats a 5-gram model: too little training, or too little text, to conclude much."


def _interval(paired: PairedDifference) -> str:
    if not np.isfinite(paired.low):
        return f"{paired.difference:.4f} nats per token (too little validation text for an interval)"
    interval = f"{paired.low:.4f} to {paired.high:.4f}"
    return f"{paired.difference:.4f} nats per token (95% interval over the text {interval})"


def _cost(one: dict[str, Any], other: dict[str, Any]) -> str:
    """What `one` costs, as multiples of `other`."""

    def times(key: str) -> str:
        return f"{one[key] / other[key]:.2f}x" if other[key] else "?"

    tokens = "the same tokens" if one["tokens"] == other["tokens"] else f"{times('tokens')} the tokens"
    return (
        f"on {tokens}, at {times('train_seconds')} the training time, {times('peak_memory_bytes')} the peak memory, "
        f"{times('params_active')} the active and {times('params_total')} the total parameters of {other['name']}."
    )


def _compiling(result: dict[str, Any]) -> str:
    """What torch.compile took, if it was asked for."""
    seconds = result.get("compile_seconds", 0.0)
    return f", {seconds:.1f} s to compile" if seconds else ""


def verdict_word(result: dict[str, Any]) -> str:
    """What the audit calls a model that does not pass."""
    return result["audit"].get("verdict", "LEAKING")


SUMMARY_ROWS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("validation loss (nats per token)", lambda r: f"{r['val_loss']:.4f}"),
    ("perplexity", lambda r: f"{r['val_perplexity']:.3f}"),
    ("bits per byte", lambda r: f"{r['val_bits_per_byte']:.4f}"),
    ("active / total parameters", lambda r: f"{r['params_active']:,} / {r['params_total']:,}"),
    ("training tokens", lambda r: f"{r['tokens']:,}"),
    (
        "training time",
        lambda r: f"{r['train_seconds']:.1f} s ({r['ms_per_step']:.1f} ms per step)" + _compiling(r),
    ),
    ("peak memory", lambda r: f"{r['peak_memory_bytes'] / 1e6:,.0f} MB"),
    ("decode", lambda r: f"{r['decode_ms_per_token']:.2f} ms per token"),
    ("audit", lambda r: "causal" if r["audit"]["causal"] else f"{verdict_word(r)}: {r['audit']['where']}"),
)


def summary_table(results: list[dict[str, Any]]) -> str:
    """The main numbers of each arm as lines of text."""
    rows = [["", *(r["name"] for r in results)]]
    rows += [[title, *(show(r) for r in results)] for title, show in SUMMARY_ROWS]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def arm_segments(records: dict[str, list[dict[str, Any]]], tokens_per_step: int) -> list[dict[str, Any]]:
    """Training loss and speed of each arm over equal stretches of steps, with the validation loss at their ends."""
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
