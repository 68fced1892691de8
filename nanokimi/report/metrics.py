"""The numbers of a run: how each is written, which end is better, and when an arm may be called better in it.

A leaking arm is never ranked. A quality is won only by the verdict's winner, because only the verdict has an
interval; a cost is won by the lowest number, unless the arms lie within TIE of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nanokimi.report import units
from nanokimi.report.records import Arm, Record

Cost = tuple[str, list[str], list[float]]
"""Title, and each arm's text and value."""

TIE = 0.02
"""Costs closer than this share count as equal: machines are not steadier than that."""


@dataclass(frozen=True)
class Metric:
    """A number of a run: how it is written, and which end of it is better."""

    key: str
    title: str
    show: Callable[[Any], str]
    better: str | None = None
    """"low", "high", or None where neither end is."""
    quality: bool = False
    """Decided by the verdict, not by the bare number."""
    difference: bool = False
    """Compared by subtraction, not by division."""


VAL_LOSS = Metric(
    "val_loss", "Validation loss (nats)", units.fixed, better="low", quality=True, difference=True
)
BITS_PER_BYTE = Metric(
    "val_bits_per_byte", "Bits per byte", units.fixed, better="low", quality=True, difference=True
)
PERPLEXITY = Metric("val_perplexity", "Perplexity", units.fixed, better="low", quality=True)
TRAIN_TIME = Metric("train_seconds", "Training time", units.seconds, better="low")
SPEED = Metric("tokens_per_second", "Tokens per second", units.count, better="high")
PEAK_MEMORY = Metric("peak_memory_bytes", "Peak memory", units.size, better="low")
TILES = (VAL_LOSS, BITS_PER_BYTE, PERPLEXITY, TRAIN_TIME, SPEED, PEAK_MEMORY)

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
PICTURE_COSTS = (ACTIVE, FLOPS, STEP_TIME, MEMORY, CACHE, DECODE)

TABLE: dict[str, tuple[Metric, ...]] = {
    "Quality": (
        VAL_LOSS,
        Metric("best_val_loss", "Best validation loss of the run", units.fixed, difference=True),
        PERPLEXITY,
        BITS_PER_BYTE,
        Metric(
            "val_bits_per_char",
            "Bits per character",
            units.fixed,
            better="low",
            quality=True,
            difference=True,
        ),
        Metric("floor_gap", "Loss above the text's entropy (nats)", units.fixed, difference=True),
    ),
    "Training": (
        TRAIN_TIME,
        Metric("compile_seconds", "Time of torch.compile", units.seconds, better="low"),
        SPEED,
        STEP_TIME,
        Metric("steps", "Optimizer steps", units.count),
        Metric("tokens", "Training tokens", units.count),
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


def value_of(arm: Arm, metric: Metric) -> Any:
    """The number, or None where it was not measured."""
    if metric is MEMORY:
        peak, idle = arm.facts.get("peak_memory_bytes"), arm.facts.get("idle_memory_bytes")
        return None if peak is None or idle is None else peak - idle
    return arm.facts.get(metric.key)


def winner_of(metric: Metric, arms: Sequence[Arm], verdict: Record) -> str | None:
    """The name of the arm that may be called better in this number, if any may."""
    clean = {arm.name: value_of(arm, metric) for arm in arms if not arm.leaking}
    if not verdict["ranked"] or metric.better is None or len(clean) < 2 or None in clean.values():
        return None
    if metric.quality:
        return verdict["winner"] if verdict["winner"] in clean else None
    order = sorted(clean, key=lambda name: clean[name], reverse=metric.better == "high")
    first, second = clean[order[0]], clean[order[1]]
    return order[0] if abs(first - second) > TIE * abs(second) else None


def against(metric: Metric, value: Any, other: Any) -> str:
    """How far `value` lies from `other`: a difference or a ratio; empty where neither can be said."""
    if not isinstance(value, int | float) or not isinstance(other, int | float):
        return ""
    if metric.difference:
        return units.signed(value - other)
    return units.ratio(value / other) if other else ""


def make_tiles(arm: Arm, arms: Sequence[Arm], verdict: Record) -> list[Record]:
    """The headline numbers of one arm; beside a number that lost, how far it lies from the winner's."""
    by_name, tiles = {other.name: other for other in arms}, []
    for metric in TILES:
        value, winner = value_of(arm, metric), winner_of(metric, arms, verdict)
        note = ""
        if winner is not None and winner != arm.name and not arm.leaking:
            other = value_of(by_name[winner], metric)
            note = units.signed(value - other) if metric.difference else units.relative(value / other)
        tile = {"title": metric.title, "text": metric.show(value), "won": winner == arm.name, "note": note}
        if value is not None:
            tiles.append(tile)
    return tiles


def make_table(arms: Sequence[Arm], verdict: Record) -> list[Record]:
    """The full table: groups of rows; of two arms, the last cell compares the first with the second."""
    comparable = len(arms) == 2 and not any(arm.leaking for arm in arms)
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
    """Title, texts and values of each cost that every arm has."""
    costs = []
    for metric in metrics:
        values = [value_of(arm, metric) for arm in arms]
        if None not in values:
            costs.append((metric.title, [metric.show(value) for value in values], values))
    return costs
