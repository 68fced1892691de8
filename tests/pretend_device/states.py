"""Small runs on the pretend device, and what a step and a decoded token of theirs cost.

python tests/pretend_device/run.py --capability 8,0 tests/pretend_device/states.py    # the table of docs/gpu.md
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from conftest import TINY_ARMS, make_text

from nanokimi.config import RunConfig
from nanokimi.config.files import load_config
from nanokimi.generation.engine import generate
from nanokimi.train.run_folder import set_up
from nanokimi.train.state import TrainState, build_state
from nanokimi.train.step import train_step
from pretend_device.counts import COUNTS
from pretend_device.tensors import KIND

READS_OF_A_STEP = 1
"""Loss, auxiliary loss and gradient norm, together."""
FENCES_OF_A_STEP = 2
"""The clock's, before and after."""
COPIES_OF_A_STEP = 2
"""Inputs and targets."""

TINY = f"""\
seed: 7
dataset: {{tokenizer: byte}}
train:
  {{context_length: 32, batch_size: 8, eval_batch_size: 8, max_steps: 4, eval_every: 4, save_every: 2,
   device: {KIND}}}
sample: {{prompts: [the small boy], max_new_tokens: 4}}
{TINY_ARMS}"""


def tiny_config(folder: Path, **train: Any) -> RunConfig:
    """Two arms of two layers on a small text in the folder; keyword arguments replace fields of `train`."""
    (folder / "text.txt").write_text(make_text(3000))
    (folder / "tiny.yaml").write_text(TINY)
    config = load_config(str(folder / "tiny.yaml"))
    dataset = replace(config.dataset, path=str(folder / "text.txt"))
    return replace(config, dataset=dataset, train=replace(config.train, **train))


def k2_27m(folder: Path, layers: int = 8) -> RunConfig:
    """The preset k2-27m, with 2 sequences at a time, bytes for tokens and one learning rate for AdamW.

    The preset's second rate, of embeddings and head, takes two launches more.
    """
    config, tiny = load_config("k2-27m", ["--nanogpt.optim.adamw_lr", "null"]), tiny_config(folder)
    few = dict(batch_size=2, max_tokens=None, max_steps=4, eval_batch_size=2, device=KIND)
    arms = {
        name: replace(arm, model=replace(arm.model, num_hidden_layers=layers))
        for name, arm in (("nanokimi", config.nanokimi), ("nanogpt", config.nanogpt))
    }
    return replace(config, dataset=tiny.dataset, train=replace(config.train, **few), **arms)


def started(config: RunConfig, folder: Path, model: str = "nanokimi", **optim: Any) -> TrainState:
    """A fresh state in a new folder; keyword arguments replace fields of the arm's optimizer."""
    config = replace(config, model=model)
    arm = replace(config.family, optim=replace(config.family.optim, **optim))
    config = replace(config, **{model: arm})
    folder.mkdir()
    return build_state(*set_up(config, folder), folder)


def cost_of_a_step(state: TrainState) -> dict[str, Any]:
    """Counts of the second training step; the first makes the optimizer's state."""
    train_step(state)
    COUNTS.reset()
    train_step(state)
    return COUNTS.totals()


def cost_of_a_token(state: TrainState) -> dict[str, float]:
    """Counts of one decoded token, without the reading of the prompt."""
    totals = []
    for tokens in (2, 4):
        COUNTS.reset()
        list(generate(state.model, [1, 2, 3], tokens))
        totals.append(COUNTS.totals())
    return {name: (totals[1][name] - totals[0][name]) / 2 for name in totals[0]}


def row(name: str, counts: dict[str, Any]) -> str:
    """A line of the table."""
    cells = (f"{counts[key]:,.0f}" for key in ("reads", "copies", "fences", "launches"))
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["NANOKIMI_CACHE"] = temporary + "/cache"
        folder = Path(temporary)
        print("| | reads | copies to the device | fences | launches |\n|---|---|---|---|---|")
        for size, config in (("tiny", tiny_config(folder)), ("k2-27m", k2_27m(folder))):
            for model in ("nanokimi", "nanogpt"):
                state = started(config, folder / f"{size}-{model}", model)
                title = f"{size}, {model} with {state.config.family.optim.name}, {state.config.train.dtype}"
                print(row(f"{title}: a step", cost_of_a_step(state)), flush=True)
                if "lines" in sys.argv:
                    for counter in (COUNTS.reads, COUNTS.copies, COUNTS.grouped, COUNTS.attention):
                        print("  ", dict(counter))
                    print("  ", COUNTS.launches.most_common(12), COUNTS.launched_at.most_common(14))
                print(row(f"{title}: a decoded token", cost_of_a_token(state)), flush=True)


if __name__ == "__main__":
    main()
