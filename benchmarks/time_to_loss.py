"""Seconds and tokens to a validation loss: NanoKimi against nanoGPT's CPU recipe, and against NanoGPT with Muon.

    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/time_to_loss.py --nanogpt nanoGPT --data tinyshakespeare.txt --config PRESET_OR_FILE \\
        [--muon_config PRESET_OR_FILE] [--seeds 1 2 3 4 5]

Every arm has a number of steps that is fixed beforehand (train.max_steps of its configuration; nanoGPT's recipe:
2,000) and runs to its end. Then its loss on the whole validation text is measured, which for ours must be at most
--target; otherwise the arm counts as having missed. Time is that of the training steps, including the first one
(compilation); for ours also everything between imports and the first step (building and compiling the model), for
nanoGPT its loop alone. Validation is not timed. nanoGPT's own train.py runs in fp32 with its own seed, 1337, on the
same token ids. The arms of a seed take turns, with every run cut into the same number of turns.

--muon_config names a configuration whose NanoGPT arm has optimizer muon or muonclip and its own tuned rate and steps.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import arms
import torch
from common import OtherLoad, commit_of, finish, options_parser, shown, spread, table, warn
from turns import Turns, Worker

from nanokimi.config import ModelName, RunConfig
from nanokimi.config.files import load_config
from nanokimi.data.store import open_prepared
from nanokimi.measure.cost import model_cost
from nanokimi.measure.evaluate import evaluate
from nanokimi.model.output import Output
from nanokimi.train.run_folder import DATA_FOLDER, set_up
from nanokimi.train.state import build_state
from nanokimi.train.step import train_step

RECIPE_STEPS, RECIPE_TOKENS = 2000, 2000 * 12 * 64
TURNS = 20


def ours(turns: Turns, config: RunConfig, data: Path) -> None:
    """Train one of our arms; returns its loss at the end."""
    turns.start()
    state = build_state(config, open_prepared(data), data)
    turns.at_end = lambda: {
        "val_loss": evaluate(state.model, state.data, config.train.context_length).loss,
        "tokens": state.tokens,
    }
    turns.ready()
    while True:
        train_step(state)
        turns.step_done()


class AsOurs(torch.nn.Module):
    """nanoGPT's model with our models' result, for `evaluate`."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BT: torch.Tensor) -> Output:
        """All logits: nanoGPT gives only the last position's unless it is given targets."""
        return Output(self.model(ids_BT, ids_BT)[0])


def loss_of_nanogpt(data: Path, model: torch.nn.Module) -> dict[str, Any]:
    """The loss that its model reached."""
    return {"val_loss": evaluate(AsOurs(model), open_prepared(data), 64).loss, "tokens": RECIPE_TOKENS}


def configured(
    name: str, model: ModelName, text: str, folder: Path, threads: int, overrides: list[str]
) -> RunConfig:
    """A configuration resolved for the text, whose tokens are put into the folder."""
    machine = ["--data", text, "--train.device", "cpu", "--train.threads", str(threads), *overrides]
    config = replace(load_config(name, machine), model=model)
    folder.mkdir()
    return set_up(config, folder)[0]


def run_seed(workers: list[Worker], steps: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Run every arm to its end, taking turns; returns seconds, loss and tokens of each."""
    seconds = {w.name: w.first_step_seconds for w in workers}
    taken = {w.name: 1 for w in workers}
    for number in range(1, TURNS + 1):
        for worker in workers if number % 2 else reversed(workers):
            due = math.ceil(steps[worker.name] * number / TURNS) - taken[worker.name]
            if due > 0:
                seconds[worker.name] += worker.turn(due)
                taken[worker.name] += due
    return {
        w.name: {"setup_seconds": w.setup_seconds, "loop_seconds": seconds[w.name], "steps": taken[w.name]}
        | {"first_step_seconds": w.first_step_seconds, **w.finish()}
        for w in workers
    }


def compared(arms_found: dict[str, dict[str, Any]], target: float) -> dict[str, float]:
    """Ratios of one seed; 0 if NanoKimi missed the target, infinite if NanoGPT with Muon did."""
    kimi, peer, muon = arms_found["nanokimi"], arms_found["nanogpt"], arms_found.get("nanogpt-muon")
    reached = kimi["val_loss"] <= target
    seconds = kimi["setup_seconds"] + kimi["loop_seconds"]
    ratios = {"time": peer["loop_seconds"] / seconds, "tokens": peer["tokens"] / kimi["tokens"]}
    if muon is not None:
        theirs = muon["setup_seconds"] + muon["loop_seconds"]
        ratios["time_muon"] = theirs / seconds if muon["val_loss"] <= target else math.inf
    return {name: value if reached else 0.0 for name, value in ratios.items()}


def arms_of(
    options: Any, overrides: list[str], folder: Path
) -> tuple[dict[str, RunConfig], dict[str, int], Path]:
    """The configurations of our arms, the steps of all, and where the tokens are."""
    prepare = partial(configured, text=options.data, threads=options.threads, overrides=overrides)
    configs = {"nanokimi": prepare(options.config, "nanokimi", folder=folder / "kimi")}
    if options.muon_config:
        configs["nanogpt-muon"] = prepare(options.muon_config, "nanogpt", folder=folder / "muon")
        assert configs["nanogpt-muon"].family.optim.name != "adamw", "that is not NanoGPT with Muon"
    steps = {name: config.train.max_steps or 0 for name, config in configs.items()}
    assert all(steps.values()), "the budget must be a number of steps, fixed beforehand: train.max_steps"
    steps["nanogpt"] = RECIPE_STEPS
    if options.smoke:
        steps = dict.fromkeys(steps, 3)
    active = model_cost(configs["nanokimi"].nanokimi.model, 64).params_active
    if active > 794_880 + 128:  # the recipe's NanoGPT with this vocabulary
        warn(f"NanoKimi has {active:,} active parameters, more than nanoGPT")
    return configs, steps, folder / "kimi" / DATA_FOLDER


def main() -> None:
    """One comparison for each seed, and the table over seeds."""
    parser = options_parser(__doc__)
    parser.add_argument("--nanogpt", required=True, help="a checkout of nanoGPT")
    parser.add_argument("--data", required=True, help="tinyshakespeare, as one text file")
    parser.add_argument("--config", required=True)
    parser.add_argument("--muon_config", default=None)
    parser.add_argument("--target", type=float, default=1.886)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    options, overrides = parser.parse_known_args()
    if options.smoke:
        options.target, options.seeds = 9.0, [1]
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, OtherLoad() as load:
        configs, steps, data = arms_of(options, overrides, Path(name))
        prepared = open_prepared(data)
        source = {"checkout": options.nanogpt, "ids": (prepared.train_ids[:], prepared.val_ids[:])}
        source |= {"vocab_size": prepared.tokenizer.vocab_size, "at_end": partial(loss_of_nanogpt, data)}
        for seed in options.seeds:
            workers = [
                Worker(arm, ours, options.threads, config=replace(config, seed=seed), data=data)
                for arm, config in configs.items()
            ]
            workers.append(Worker("nanogpt", arms.nanogpt, options.threads, **source))
            found = run_seed(workers, steps)
            runs.append({"seed": seed, "arms": found, "ratios": compared(found, options.target)})
            losses = ", ".join(
                f"{arm} {f['val_loss']:.4f} in {f['loop_seconds']:.1f} s" for arm, f in found.items()
            )
            print(f"seed {seed}: {losses}", flush=True)
    report(options, runs, load.cores)


def report(options: Any, runs: list[dict[str, Any]], other_cores: float) -> None:
    """The table over seeds and the JSON line."""
    rows = []
    for arm in runs[0]["arms"]:
        each = [run["arms"][arm] for run in runs]
        parts = [
            spread([f[key] for f in each]) for key in ("loop_seconds", "setup_seconds", "first_step_seconds")
        ]
        cells = [shown(spread([f["val_loss"] for f in each]), ".4f"), *(shown(part) for part in parts)]
        rows.append([arm, *cells, f"{median(f['tokens'] for f in each):,.0f}"])
    print(table(["arm", "validation loss", "loop s", "set-up s", "first step s", "tokens"], rows))
    ratios = {name: spread([run["ratios"][name] for run in runs]) for name in runs[0]["ratios"]}
    missed = sum(run["arms"]["nanokimi"]["val_loss"] > options.target for run in runs)
    print(f"nanoGPT over NanoKimi: time {shown(ratios['time'])}, tokens {shown(ratios['tokens'])}")
    if "time_muon" in ratios:
        print(f"NanoGPT with Muon over NanoKimi: time {shown(ratios['time_muon'])}")
    print(f"{missed} of {len(runs)} seeds missed {options.target}")
    record = {"benchmark": "time_to_loss", "ratios": ratios, "missed": missed, "runs": runs}
    finish(options, {**record, "nanogpt": commit_of(options.nanogpt), "other_cores": other_cores})


if __name__ == "__main__":
    main()
