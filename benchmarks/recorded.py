"""The recorded runs of docs/results, as the tables and numbers of the documents need them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nanokimi.compare.report import arm_row
from nanokimi.compare.verdict import pairs_of
from nanokimi.config.files import load_config
from nanokimi.runtime.files import describe_environment, read_json_lines, write_atomic

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
PRESETS = ROOT / "nanokimi" / "presets"
Row = dict[str, Any]
PRESET_OF = {name: "tales" for name in ("tales-short", "tales-new-seeds")}
"""The presets of recorded comparisons, if it was measured how far rounding moves their runs."""
OLD_SEED_2 = {
    "NanoKimi": [1.5768, 1.5846, 1.5867],
    "NanoKimi of seed 2": [1.5846, 1.5750, 1.5749],
    "NanoGPT of seed 2": [1.7546, 1.7599, 1.7452],
}
"""Losses by arm of the withdrawn contest of earlier system 2, from docs/earlier-results.md: no lines were kept."""


def print_and_record(script: str, rows: Iterable[Row], path: Path | None) -> None:
    """Print each of a script's lines, and write all of them to a file, after one that says how they were made."""
    environment = describe_environment()
    head = {"kind": "head", "time": environment["time"], "commit": environment["commit"]}
    head["command"] = " ".join(["python", f"benchmarks/{script}", *sys.argv[1:]])
    lines: list[Row] = [head]
    for row in rows:
        print(json.dumps(row), flush=True)
        lines.append(row)
    if path is not None:
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_comparison(name: str) -> tuple[Row, list[Row]]:
    """The head and the runs of docs/results/NAME.jsonl."""
    head, *runs = read_json_lines(RESULTS / f"{name}.jsonl")
    return head, runs


def judged(name: str, seeds: int | None = None) -> tuple[Row, list[Row], list[Row], list[Row]]:
    """Head, runs, arms and pairs, judged as `nanokimi compare` judges them; with `seeds`, of the first so many."""
    head, runs = read_comparison(name)
    first = sorted({run["seed"] for run in runs})[:seeds]
    runs = [run for run in runs if run["seed"] in first]
    arms = [arm_row(arm, runs, head["search"].get(arm)) for arm in dict.fromkeys(run["arm"] for run in runs)]
    spread = load_config(PRESET_OF[name]).compare.spread if name in PRESET_OF else None
    return head, runs, arms, pairs_of(arms, runs, spread)


def old_tales() -> dict[str, list[float]]:
    """Losses by arm of the withdrawn comparison on tales, five seeds each."""
    lines = read_json_lines(RESULTS / "old" / "tales-muon.jsonl")
    losses: dict[str, list[float]] = {}
    for line in lines:
        if line["kind"] == "run" and line["purpose"] == "seed":
            losses.setdefault(line["arm"], []).append(line["val_loss"])
    return losses


def old_shakespeare() -> dict[str, list[float]]:
    """Losses by arm of the withdrawn comparison on tinyshakespeare, three seeds each, at its last commit."""
    lines = read_json_lines(RESULTS / "old" / "shakespeare-char.jsonl")
    losses: dict[str, list[float]] = {}
    for line in lines:
        if line["commit"] == lines[-1]["commit"]:
            losses.setdefault(line["name"], []).append(line["val_loss"])
    return losses
