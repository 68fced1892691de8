"""A run on the device: training with evaluation, stories and telemetry; resuming; what is done with its model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nanokimi.config.files import load_config
from nanokimi.data.store import open_prepared
from nanokimi.kernels.accelerate import accelerate_
from nanokimi.measure.evaluate import evaluate
from nanokimi.model.build import build_model
from nanokimi.runtime.files import read_json_lines
from nanokimi.train.checkpoint import load_newest_checkpoint
from nanokimi.train.loop import train
from nanokimi.train.prune import expert_usage, pruned_weights
from nanokimi.train.run_folder import find_data
from nanokimi.train.state import build_state
from pretend_device.states import started, tiny_config
from pretend_device.tensors import DEVICE


def check_runs_train_evaluate_write_and_resume(folder: Path) -> None:
    """The second half of a run, from its checkpoint, is what it was."""
    for model in ("nanokimi", "nanogpt"):
        state = started(tiny_config(folder), folder / model, model)
        list(train(state))
        kinds = {record["kind"] for record in read_json_lines(folder / model / "metrics.jsonl")}
        assert kinds >= {"train", "eval", "sample", "attention"}, kinds
        newest = sorted((folder / model / "checkpoints").glob("step-*"))[-1]
        newest.rename(folder / f"{model}-newest")
        config = load_config(str(folder / model / "config.yaml"))
        again = build_state(config, open_prepared(find_data(folder / model)), folder / model)
        assert load_newest_checkpoint(again) and again.step == 2
        list(train(again))
        for mine, theirs in zip(again.model.parameters(), state.model.parameters(), strict=True):
            assert mine.device == DEVICE
            torch.testing.assert_close(mine.cpu(), theirs.cpu(), rtol=1e-4, atol=1e-5)


def check_experts_are_counted_and_pruned(folder: Path) -> None:
    """The pruned model scores a text."""
    state = started(tiny_config(folder), folder / "run")
    usage_LE = expert_usage(state.model, state.data, 32)
    assert usage_LE.dtype == torch.float64 and (usage_LE.sum(dim=1) == usage_LE.sum(dim=1)[0]).all()
    kept_LE = usage_LE.topk(2, dim=1).indices.sort(dim=1).values
    config: Any = replace(state.config.family.model, n_routed_experts=2)
    pruned = build_model(config, seed=0).to(DEVICE)
    accelerate_(pruned)
    pruned.load_state_dict(pruned_weights(state.model, kept_LE))
    assert 0 < evaluate(pruned, state.data, 32, 8).loss < 10
