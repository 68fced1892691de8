"""What NanoGPT with AdamW gains from what every arm with Muon has: a rate of their own for embeddings and head.

    python benchmarks/two_rates.py --out docs/results/two-rates.jsonl

The default comparison's NanoGPT, as its search found it, is trained with its rate multiplied by one factor for
embeddings and head and by another for all other weights. The factors are chosen by validation loss with the search's
seed; that pair and the pair of ones are then trained with the comparison's seeds, and score the test part. Runs that
the file already has are not repeated, so the command can be repeated until it is done. One thread, bf16 where the
processor multiplies it. (There is no such setting: the optimizer's groups are divided here.)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nanokimi.config import RunConfig
from nanokimi.config.arms import arm_configs
from nanokimi.config.files import load_config
from nanokimi.data.store import PreparedData, open_prepared
from nanokimi.measure.evaluate import evaluate
from nanokimi.optim.groups import assign
from nanokimi.runtime.files import append_json_line, describe_environment, read_json_lines
from nanokimi.train.loop import train
from nanokimi.train.run_folder import find_data, set_up
from nanokimi.train.state import build_state

Row = dict[str, Any]
Pair = tuple[float, float]
"""Factors of the rate: of embeddings and head, and of all other weights."""
ARM, PRESET = "NanoGPT", "tales"
ONE: Pair = (1.0, 1.0)
PAIRS: tuple[Pair, ...] = (ONE, (2, 1), (3, 1), (2, 0.5), (3, 0.5), (4, 0.5), (6, 0.5), (3, 0.35), (4, 0.35))
PAIRS = (*PAIRS, (1, 0.5), (2, 0.35), (1.4, 0.35))  # around the best of those
TUNING_SEED, SEEDS = 2337, (1337, 1338, 1339, 1340, 1341)


def divide_groups(model: torch.nn.Module, optimizer: torch.optim.Optimizer, factors: Pair) -> None:
    """Give the weights that AdamW updates beside Muon a group of their own, and each group its rate."""
    names = {id(p): name for name, p in model.named_parameters()}
    for group in list(optimizer.param_groups):
        outer = [p for p in group["params"] if p.dim() >= 2 and _beside_muon(names[id(p)], p)]
        if outer:
            kept = {key: value for key, value in group.items() if key != "params"}
            group["params"] = [p for p in group["params"] if not any(p is one for one in outer)]
            optimizer.add_param_group({**kept, "params": outer, "peak_lr": group["peak_lr"] * factors[0]})
        group["peak_lr"] *= factors[1]


def _beside_muon(name: str, p: torch.Tensor) -> bool:
    return assign(name, tuple(p.shape))[0] == "adamw"


def run(arm: RunConfig, data: PreparedData, factors: Pair, judged: bool) -> Row:
    """The losses of one run; without `judged` that of the validation part alone."""
    with tempfile.TemporaryDirectory() as folder:
        state = build_state(arm, data, Path(folder))
        divide_groups(state.model, state.optimizer, factors)
        state.only_final_score = True
        for _ in train(state):
            pass
        assert state.last_evaluation is not None
        row = {"embedding": factors[0], "other": factors[1], "seed": arm.seed, "dtype": arm.train.dtype}
        row["val_loss"] = state.last_evaluation.loss
        if judged:
            row["test_loss"] = evaluate(state.model, data, arm.train.context_length, part="test").loss
    return row


def best_pair(rows: list[Row]) -> Pair:
    """The pair with the lowest validation loss with the search's seed."""
    tried = [row for row in rows if row["seed"] == TUNING_SEED]
    best = min(tried, key=lambda row: float(row["val_loss"]))
    return best["embedding"], best["other"]


def main() -> None:
    """Make the runs that the file lacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="the lines are added to this file")
    parser.add_argument("--most", type=int, default=1000, help="end after so many runs")
    options = parser.parse_args()
    environment = describe_environment()
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(PRESET, ["--train.threads", "1"])
        resolved, _ = set_up(config, Path(folder))
        data, arm = open_prepared(find_data(Path(folder))), arm_configs(resolved)[ARM]

        def make(pairs: tuple[Pair, ...], seeds: tuple[int, ...], judged: bool) -> None:
            for factors in pairs:
                for seed in seeds:
                    rows = read_json_lines(options.out) if options.out.exists() else []
                    done = {(row["embedding"], row["other"], row["seed"]) for row in rows}
                    if (*factors, seed) in done or options.most <= 0:
                        continue
                    options.most -= 1
                    row = run(replace(arm, seed=seed), data, factors, judged)
                    row |= {key: environment[key] for key in ("time", "processor", "commit")}
                    append_json_line(options.out, row)
                    print(f"{factors}, seed {seed}: {row['val_loss']:.4f}", file=sys.stderr)

        make(PAIRS, (TUNING_SEED,), judged=False)
        if options.most > 0:
            make((ONE, best_pair(read_json_lines(options.out))), SEEDS, judged=True)


if __name__ == "__main__":
    main()
