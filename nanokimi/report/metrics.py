"""The numbers of a run: how each is written, whether low or high is better, and when an arm may be marked as the best.

An arm that is LEAKING, or that could not be audited, is never ranked, and with one seed no arm is. In quality only the
verdict's winner is marked, because only the verdict has an interval. In cost the lowest number is marked, unless the
two best arms lie within TIE of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nanokimi.report import units
from nanokimi.report.records import Arm, Record, fewest_seeds, winner_name

Cost = tuple[str, list[str], list[float], list[list[float]]]
"""Title, and each arm's text, value and the values of its runs."""

TIE = 0.02
"""Costs count as equal if they differ by less than this share, because timings on a machine vary as much."""


@dataclass(frozen=True)
class Metric:
    """A number of a run: how it is written, and whether low or high is better."""

    key: str
    title: str
    show: Callable[[Any], str]
    better: str | None = None
    """"low" or "high"; None if neither is better."""
    quality: bool = False
    """Whether the verdict decides which arm is best, and not the number alone."""
    difference: bool = False
    """Whether arms are compared by the difference and not by the ratio."""


TEST_LOSS = Metric("test_loss", "Test loss (nats)", units.fixed, better="low", quality=True, difference=True)
DEVIATION = Metric("deviation", "Standard deviation over seeds (nats)", units.fixed)
BITS_PER_BYTE = Metric(
    "test_bits_per_byte", "Bits per byte", units.fixed, better="low", quality=True, difference=True
)
FLOOR_GAP = Metric(
    "floor_gap",
    "Above the floor (nats)",
    units.fixed,
    better="low",
    quality=True,
    difference=True,
)
TRAIN_TIME = Metric("train_seconds", "Training time", units.seconds, better="low")
SPEED = Metric("tokens_per_second", "Tokens per second", units.count, better="high")
PEAK_MEMORY = Metric("peak_memory_bytes", "Peak memory", units.size, better="low")

TOKENS = Metric("tokens", "Training tokens", units.count)
PARAMS = Metric("params_total", "Parameters", units.short)
ACTIVE = Metric("params_active", "Active parameters per token", units.short)
FLOPS = Metric("flops_per_token", "Training FLOPs per token", units.short, better="low")
STEP_TIME = Metric("ms_per_step", "Time per step (median)", units.milliseconds, better="low")
MEMORY = Metric("memory_above_idle", "Peak memory above idle", units.size, better="low")
STATE = Metric("optimizer_state_bytes", "Optimizer state", units.size, better="low")
CACHE = Metric("cache_bytes_per_token", "Cache per token of context", units.size, better="low")
PREFILL = Metric("prefill_ms", "Prefill (read half a context)", units.milliseconds, better="low")
DECODE = Metric("decode_ms_per_token", "Decode (write one token)", units.milliseconds, better="low")
COSTS = (PARAMS, ACTIVE, FLOPS, STEP_TIME, MEMORY, STATE, CACHE, PREFILL, DECODE)
TILES = (TRAIN_TIME, PEAK_MEMORY, PARAMS, FLOPS, CACHE, DECODE)
"""The costs on the first screen."""
PICTURE_COSTS = (ACTIVE, FLOPS, STEP_TIME, MEMORY, CACHE, DECODE)

TABLE: dict[str, tuple[Metric, ...]] = {
    "Quality, on the test text": (
        TEST_LOSS,
        DEVIATION,
        Metric("test_perplexity", "Perplexity", units.fixed, better="low", quality=True),
        BITS_PER_BYTE,
        Metric(
            "test_bits_per_char",
            "Bits per character",
            units.fixed,
            better="low",
            quality=True,
            difference=True,
        ),
        FLOOR_GAP,
    ),
    "On the validation text": (
        Metric("val_loss", "Final validation loss (nats)", units.fixed, difference=True),
        Metric("best_val_loss", "Best validation loss of the run (nats)", units.fixed, difference=True),
    ),
    "Training": (
        TRAIN_TIME,
        Metric("compile_seconds", "Time of torch.compile", units.seconds, better="low"),
        SPEED,
        STEP_TIME,
        Metric("steps", "Optimizer steps", units.count),
        TOKENS,
        Metric("flops", "Training FLOPs", units.short, better="low"),
        FLOPS,
        Metric("forward_flops_per_token", "Forward FLOPs per token", units.short, better="low"),
        Metric("optimizer_flops_per_step", "Optimizer FLOPs per step", units.short, better="low"),
    ),
    "Size and memory": (
        Metric("params_total", "Parameters", units.count),
        Metric("params_active", "Active parameters per token", units.count),
        PEAK_MEMORY,
        Metric("idle_memory_bytes", "Memory before training (idle)", units.size),
        MEMORY,
        STATE,
    ),
    "Writing text": (CACHE, PREFILL, DECODE),
    "Setup": (
        Metric("optimizer", "Optimizer", str),
        Metric("lr", "Peak learning rate", units.rate),
        Metric("schedule", "Schedule", str),
        Metric("weight_decay", "Weight decay", units.rate),
        Metric("device", "Device", str),
        Metric("dtype", "Precision", str),
        Metric("threads", "CPU threads", units.count),
    ),
}


FIRST_COLUMNS = (
    Metric("params_active", "Active parameters", units.short),
    Metric("params_total", "All parameters", units.short),
    Metric("flops", "FLOPs", units.short),
    Metric("train_seconds", "Training", units.seconds),
    Metric("ms_per_step", "One step", units.milliseconds),
    Metric("peak_memory_bytes", "Peak memory", units.size),
    Metric("decode_ms_per_token", "Write one token", units.milliseconds),
)
"""The costs beside the losses in the table of arms."""


STUDY_PAGE = (
    Metric("floor_gap", "Above the floor", units.fixed),
    Metric("test_bits_per_byte", "Bits per byte", units.fixed),
    Metric("params_active", "Active", units.count),
    Metric("params_total", "Total", units.count),
    Metric("steps", "Steps", units.count),
    Metric("ms_per_step", "ms/step", units.plain),
    Metric("peak_memory_bytes", "Memory", units.size),
)
"""The columns of a study's page beside each arm's loss."""

STUDY_TEXT = (
    Metric("floor_gap", "above floor", units.fixed),
    Metric("params_active", "active", units.count),
    Metric("params_total", "total", units.count),
    Metric("steps", "steps", units.count),
    Metric("train_seconds", "seconds", "{:.1f}".format),
)
"""The columns of a study's table on the terminal and in study.md."""

STUDY_KEYS = tuple(dict.fromkeys(metric.key for metric in (*STUDY_PAGE, *STUDY_TEXT)))
"""The numbers that a study keeps of each run besides its losses."""

NOT_SHOWN = ("first_step_ms", "best_step", "batches_skipped", "micro_batch_size", "cache_bytes_fixed")
"""Metrics of result.json that no table of a report shows."""


def value_of(arm: Arm, metric: Metric) -> Any:
    """The arm's number, or None if it was not measured."""
    if metric is MEMORY:
        peak, idle = _over_seeds(arm, "peak_memory_bytes"), _over_seeds(arm, "idle_memory_bytes")
        return None if peak is None or idle is None else peak - idle
    return _over_seeds(arm, metric.key)


def values_of(arm: Arm, metric: Metric) -> list[float]:
    """The number of each run that has one."""
    found = [run.metadata.get("peak_memory_bytes" if metric is MEMORY else metric.key) for run in arm.runs]
    idle = [run.metadata.get("idle_memory_bytes") if metric is MEMORY else 0 for run in arm.runs]
    pairs = zip(found, idle, strict=True)
    return [value - nothing for value, nothing in pairs if value is not None and nothing is not None]


def _over_seeds(arm: Arm, key: str) -> Any:
    """The arm's own entry, or else the mean over the runs that have one. Values that are not numbers are listed.

    Some runs have no entry: decoding, for example, is timed for the first seed alone.
    """
    if arm.metadata.get(key) is not None:
        return arm.metadata[key]
    values: list[Any] = [run.metadata[key] for run in arm.runs if run.metadata.get(key) is not None]
    if not values:
        return None
    if all(isinstance(value, int | float) for value in values):
        return sum(values) / len(values)
    return ", ".join(dict.fromkeys(map(str, values)))


def winner_of(metric: Metric, arms: Sequence[Arm], verdict: Record) -> str | None:
    """The name of the arm that may be marked as the best in this number, or None."""
    sound = {arm.name: value_of(arm, metric) for arm in arms if arm.sound}
    if not verdict["ranked"] or fewest_seeds(arms) < 2 or metric.better is None:
        return None
    if len(sound) < 2 or None in sound.values():
        return None
    if metric.quality:
        return winner_name(verdict, arms)
    order = sorted(sound, key=lambda name: sound[name], reverse=metric.better == "high")
    first, second = sound[order[0]], sound[order[1]]
    return order[0] if abs(first - second) > TIE * abs(second) else None


def against(metric: Metric, value: Any, other: Any) -> str:
    """How `value` compares with `other`, as a difference or a ratio; empty if they are not numbers."""
    if not isinstance(value, int | float) or not isinstance(other, int | float):
        return ""
    if metric.difference:
        return units.signed(value - other)
    return units.ratio(value / other) if other else ""


def make_rows(arms: Sequence[Arm], verdict: Record) -> list[Record]:
    """The table of arms: a row for each, with means over its seeds."""
    losses = (BITS_PER_BYTE, FLOOR_GAP)
    columns = [m for m in (*losses, *FIRST_COLUMNS) if any(value_of(arm, m) is not None for arm in arms)]
    attainable = any(run.metadata.get("attainable_floor") is not None for arm in arms for run in arm.runs)
    titles = {FLOOR_GAP.key: "Above the attainable floor" if attainable else "Above the floor"}
    rows = []
    for arm in arms:
        loss = units.spread(value_of(arm, TEST_LOSS), value_of(arm, DEVIATION))
        cells = [
            {"title": TEST_LOSS.title, "text": loss, "won": winner_of(TEST_LOSS, arms, verdict) == arm.name}
        ]
        for metric in columns:
            value, won = value_of(arm, metric), winner_of(metric, arms, verdict) == arm.name
            text = units.MISSING if value is None else metric.show(value)
            cells.append({"title": titles.get(metric.key, metric.title), "text": text, "won": won})
        rows.append({"arm": arm, "seeds": len(arm.runs), "cells": cells})
    return rows


def make_table(arms: Sequence[Arm], verdict: Record) -> list[Record]:
    """The full table, as groups of rows. With two arms, a last cell compares the first with the second."""
    comparable = len(arms) == 2 and all(arm.sound for arm in arms)
    groups = []
    for title, metrics in TABLE.items():
        rows = []
        for metric in metrics:
            values = [value_of(arm, metric) for arm in arms]
            if all(value is None for value in values):
                continue
            winner = winner_of(metric, arms, verdict)
            cells = [
                {"text": units.MISSING if value is None else metric.show(value), "won": arm.name == winner}
                for arm, value in zip(arms, values, strict=True)
            ]
            versus = against(metric, *values) if comparable and title != "Setup" else ""
            rows.append({"title": metric.title, "cells": cells, "versus": versus})
        if rows:
            groups.append({"title": title, "rows": rows})
    return groups


def make_costs(arms: Sequence[Arm], metrics: Sequence[Metric]) -> list[Cost]:
    """Each cost that every arm has."""
    costs = []
    for metric in metrics:
        values = [value_of(arm, metric) for arm in arms]
        if None not in values:
            single = [values_of(arm, metric) for arm in arms]
            costs.append((metric.title, [metric.show(value) for value in values], values, single))
    return costs
