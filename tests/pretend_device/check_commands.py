"""Whole commands on the device, NanoKimi's and NanoGPT's in one comparison: minutes, so `make test-slow`."""

from __future__ import annotations

from pathlib import Path

from nanokimi import cli
from nanokimi.config.files import save_config
from nanokimi.runtime.files import read_json
from pretend_device.counts import COUNTS
from pretend_device.states import tiny_config


def said(*words: object) -> None:
    """Run a command, which must succeed."""
    status = cli.main([str(word) for word in words])
    assert not status, (status, words)


def check_commands_run_on_the_device(folder: Path) -> None:
    """Everything that a run's folder is for, with NanoKimi."""
    save_config(tiny_config(folder), folder / "run.yaml")
    run = folder / "run"
    said("train", "--config", folder / "run.yaml", "--out", run)
    result = read_json(run / "result.json")
    assert result["audit"]["causal"] and result["steps"] == 4, result
    said("evaluate", run)
    said("sample", run, "--prompt", "the small", "--max-new-tokens", 3)
    said("audit", run)
    said("prune", run, "--keep", 2, "--recover", 1, "--out", folder / "pruned")
    pruned = read_json(folder / "pruned" / "prune.json")
    assert pruned["kept"] == 2 and pruned["val_loss_recovered"] is not None
    assert sum(COUNTS.launches.values()) > 1000  # it was the device that worked


def check_a_comparison_runs_on_the_device(folder: Path) -> None:
    """Each arm in a process of its own, which has the pretend device as well."""
    save_config(tiny_config(folder), folder / "run.yaml")
    said("compare", "--config", folder / "run.yaml", "--out", folder / "out")
    forms = [read_json(path)["kernels"] for path in (folder / "out").glob("*/seed-*/environment.json")]
    assert len(forms) >= 2 and all(form["decoded token"] == "a copy on the CPU" for form in forms), forms
