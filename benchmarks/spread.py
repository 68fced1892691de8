"""How much equivalent runs of a preset differ: from seed to seed, and by rounding alone.

    python benchmarks/spread.py --config tales --runs 5 --out docs/results/spread.jsonl

Each arm is trained with several seeds, and several times with the first seed and initial weights moved by one
rounding error (2^-23 of each weight, up or down at random), which is what another processor or number of threads does
in the first step. The largest standard deviations of the arms' test losses go into the preset's `compare.spread`:
paste the last printed line there. Runs that the file already has are not repeated at the same commit, so the command
can be repeated until it is done.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import stdev
from typing import Any

import torch

from nanokimi.config import RunConfig
from nanokimi.config.arms import arm_configs
from nanokimi.config.files import load_config
from nanokimi.data.store import open_prepared
from nanokimi.measure.evaluate import evaluate
from nanokimi.runtime.files import append_json_line, describe_environment, read_json_lines
from nanokimi.train.loop import train
from nanokimi.train.run_folder import find_data, set_up
from nanokimi.train.state import build_state

UNIT = 2.0**-23
Row = dict[str, Any]


def nudge(model: torch.nn.Module, seed: int) -> None:
    """Move every weight by at most one rounding error."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            signs = torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1
            weight.mul_(1 + UNIT * signs.to(weight.dtype))


def test_loss(config: RunConfig, data_folder: Path, nudged: int) -> float:
    """The test loss of one run; `nudged` 0: from the seed's own weights."""
    data = open_prepared(data_folder)
    with tempfile.TemporaryDirectory() as folder:
        state = build_state(config, data, Path(folder))
        if nudged:
            nudge(state.model, nudged)
        state.only_final_score = True
        for _ in train(state):
            pass
        scores = evaluate(state.model, data, config.train.context_length, part="test")
    return scores.loss


def wanted_runs(arms: dict[str, RunConfig], runs: int) -> list[tuple[str, int, int]]:
    """(arm, seed, nudged): `runs` seeds, and as many roundings of the first seed."""
    jobs = []
    for name, arm in arms.items():
        jobs += [(name, arm.seed + i, 0) for i in range(runs)]
        jobs += [(name, arm.seed, i) for i in range(1, runs)]
    return jobs


def measure(name: str, config: RunConfig, runs: int, out: Path, workers: int) -> None:
    """Make the runs that the file lacks, two or more at a time, one thread each."""
    environment = describe_environment()
    done = {(r["arm"], r["seed"], r["nudged"]) for r in recorded(out, name, environment["commit"])}
    with tempfile.TemporaryDirectory() as folder:
        config = replace(config, train=replace(config.train, threads=1))
        resolved, _ = set_up(config, Path(folder))
        data_folder = find_data(Path(folder))
        arms = arm_configs(resolved)
        jobs = [job for job in wanted_runs(arms, runs) if job not in done]
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            losses = {
                job: pool.submit(test_loss, replace(arms[job[0]], seed=job[1]), data_folder, job[2])
                for job in jobs
            }
            for (arm, seed, nudged), loss in losses.items():
                row = {"preset": name, "arm": arm, "seed": seed, "nudged": nudged, "test_loss": loss.result()}
                row |= {key: environment[key] for key in ("time", "processor", "commit")}
                append_json_line(out, row)
                print(f"{arm}, seed {seed}, rounding {nudged}: {row['test_loss']:.4f}", file=sys.stderr)


def recorded(out: Path, name: str, commit: str | None) -> list[Row]:
    """The lines of this preset at this commit: at another one its settings may have been others."""
    rows = read_json_lines(out) if out.exists() else []
    return [row for row in rows if (row["preset"], row["commit"]) == (name, commit)]


def spread_of(rows: list[Row]) -> Row:
    """What goes into the preset: the arms' largest deviations over seeds and over roundings."""
    found: dict[str, list[float]] = {"seed": [], "rounding": []}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        first = min(row["seed"] for row in own)
        found["seed"].append(stdev(row["test_loss"] for row in own if not row["nudged"]))
        found["rounding"].append(stdev(row["test_loss"] for row in own if row["seed"] == first))
    return {key: max(values) for key, values in found.items()}


def main() -> None:
    """Measure, and say what the preset should hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default="tales")
    parser.add_argument(
        "--runs", type=int, default=5, help="seeds, and roundings of the first seed (at least 2)"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, required=True, help="the lines are added to this file")
    chosen, options = parser.parse_known_args()
    if chosen.runs < 2:
        parser.error("--runs must be at least 2")
    measure(chosen.config, load_config(chosen.config, options), chosen.runs, chosen.out, chosen.workers)
    spread = spread_of(recorded(chosen.out, chosen.config, describe_environment()["commit"]))
    print(
        f"compare: {{spread: {{seed: {spread['seed']:.4f}, rounding: {spread['rounding']:.4f}, runs: {chosen.runs}, "
    )
    print(f"  file: {chosen.out}}}}}")


if __name__ == "__main__":
    main()
