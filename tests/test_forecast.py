"""The dry run: counts are exactly those of the run that follows, memory is near, and only prepared data stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, make_text

from nanokimi import cli
from nanokimi.cli.forecast_table import forecast_text
from nanokimi.config import RunConfig
from nanokimi.config.files import load_config
from nanokimi.errors import TrainingError
from nanokimi.profiling import forecast as module
from nanokimi.profiling.forecast import TIMED_STEPS, Forecast, forecast, tried
from nanokimi.runtime.files import read_json, read_json_lines
from nanokimi.train.state import TrainState, build_state

SETTINGS = """\
seed: 7
train:
  {context_length: 16, batch_size: 8, eval_batch_size: 8, max_epochs: 0.5, eval_every: 6, save_every: 4, device: cpu,
   threads: 1}
sample: {prompts: [the small boy, a red ball], max_new_tokens: 20}
nanokimi:
  model:
    {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, kv_lora_rank: 16, qk_nope_head_dim: 16,
     qk_rope_head_dim: 8, v_head_dim: 16, intermediate_size: 48, moe_intermediate_size: 16, n_routed_experts: 4}
  optim: {lr: 1e-2, warmup_steps: 2}
"""


@dataclass
class Pair:
    """A forecast and the run that followed, in processes of their own."""

    folder: Path
    left: list[str]  # everything below the folder after the dry run
    out: Path
    found: Forecast


def paths(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("forecast")
    out = folder / "runs" / "one"
    (folder / "tiny.yaml").write_text(SETTINGS)
    (folder / "text.txt").write_text(make_text())
    options = ["--data", str(folder / "text.txt"), "--dataset.cache", str(folder / "cache")]
    found = forecast(load_config(str(folder / "tiny.yaml"), options), out)
    left = paths(folder)
    command = ["train", "--config", str(folder / "tiny.yaml"), *options, "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "nanokimi", *command], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return Pair(folder, left, out, found)


def test_counts_are_those_of_the_run(pair: Pair) -> None:
    found, result = pair.found, read_json(pair.out / "result.json")
    data, records = read_json(pair.out / "data" / "data.json"), read_json_lines(pair.out / "metrics.jsonl")
    assert found.steps == result["steps"] and found.flops == pytest.approx(records[-1]["flops"])
    assert (found.cost.params_total, found.cost.params_active) == (
        result["params_total"],
        result["params_active"],
    )
    assert (found.train_tokens, found.val_tokens) == (data["train_tokens"], data["val_tokens"])
    assert found.validations == sum(record["kind"] == "eval" for record in records)
    assert found.optimizer_bytes == result["optimizer_state_bytes"]
    assert found.gradient_bytes == 4 * result["params_total"] <= found.weights_bytes


def test_memory_and_disk_are_near_those_of_the_run(pair: Pair) -> None:
    measured = read_json(pair.out / "result.json")["peak_memory_bytes"]
    assert 0.75 < pair.found.peak_memory_bytes / measured < 1.25
    disk = sum(path.stat().st_size for path in pair.out.rglob("*") if path.is_file())
    assert 0.75 < pair.found.disk_bytes / disk < 2, "one checkpoint more while an old one still stands"


def test_a_dry_run_leaves_only_prepared_data_which_the_run_finds(pair: Pair) -> None:
    assert [path for path in pair.left if not path.startswith("cache")] == ["text.txt", "tiny.yaml"]
    assert not [path for path in pair.left if "dry-run" in path]
    in_cache = [path for path in paths(pair.folder) if path.startswith("cache")]
    assert in_cache == [path for path in pair.left if path.startswith("cache")], (
        "the run prepared nothing anew"
    )


def test_the_arithmetic(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "timed_steps", lambda state: [1.0, 3.0])
    monkeypatch.setattr(module, "seconds_per_scored_token", lambda state: 0.5)
    monkeypatch.setattr(module, "audit_tokens", lambda state: 10)
    found = forecast(tiny_config(max_steps=7, eval_every=3), tmp_path / "out", apart=False)
    assert found.validations == 4, "before the first step, after 3 and 6, and at the end"
    assert found.seconds["training"] == 14.0 and found.seconds["audit"] == 5.0
    assert found.seconds["validations"] == 4 * 0.5 * found.val_tokens
    text = forecast_text(found)
    for part in ("parameters", "7 steps", "2,000 ms (mean of 2)", "4 validations", "optimizer state", "disk"):
        assert part in text, part
    assert max(map(len, text.splitlines())) < 100

    config = tiny_config(max_steps=None, max_seconds=60.0)
    found = forecast(config, tmp_path / "out", apart=False)
    assert found.steps == 30 and "30 steps" in forecast_text(found)
    assert "expected; the budget is in seconds" in forecast_text(found)


@pytest.mark.parametrize(
    ("steps", "taken", "timed"), [(1, 1, 1), (3, 3, 1), (99, 2 + TIMED_STEPS, TIMED_STEPS)]
)
def test_no_more_steps_are_taken_than_the_run_has(
    steps: int,
    taken: int,
    timed: int,
    tiny_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states: list[TrainState] = []

    def build(*arguments: object) -> TrainState:
        states.append(build_state(*arguments))  # type: ignore[arg-type]
        return states[0]

    monkeypatch.setattr(module, "build_state", build)
    monkeypatch.setattr(module, "TIMED_SECONDS", 0.0)
    found = forecast(replace(tiny_config(max_steps=steps), model="nanogpt"), tmp_path / "out", apart=False)
    assert (found.steps, found.steps_timed, states[0].step) == (steps, timed, taken)


# ---- what goes wrong


def test_bad_input_is_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text_file: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    (tmp_path / "tiny.yaml").write_text(SETTINGS)
    before = paths(tmp_path)
    for options, part in (
        ("--data missing.txt", "missing.txt does not exist"),
        ("--data short.txt", "has 5 characters: validation"),
        (f"--data {text_file} --out taken", "never overwrites"),
        (f"--data {text_file} --train.device tpu", "train.device is 'tpu'"),
        (f"--data {text_file} --resume --out taken", "leave out --resume"),
        (f"--data {text_file} --dry-run", "--dry-run is given twice"),
    ):
        assert cli.main(["train", "--config", "tiny.yaml", "--dry-run", *options.split()]) == 2, options
        printed = capsys.readouterr()
        assert printed.err.count("\n") == 1 and part in printed.err and printed.out == "", printed
    assert paths(tmp_path) == before


def test_a_model_too_large_for_the_machine_is_one_line(
    tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str], own_cache: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(SETTINGS)
    huge = ["--nanokimi.model.hidden_size", str(2**20), "--nanokimi.model.intermediate_size", str(2**16)]
    arguments = ["train", "--config", str(tmp_path / "tiny.yaml"), "--data", str(text_file), *huge]
    assert cli.main([*arguments, "--dry-run"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("nanokimi: too little memory, tried: weights") and printed.count("\n") == 1
    assert "parameters on cpu" in printed
    assert not list(own_cache.glob("dry-run-*"))


def test_memory_that_runs_out_is_told_from_other_errors() -> None:
    with pytest.raises(TrainingError, match="too little memory, tried: a step"), tried("a step"):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory:\n you tried to allocate 9 bytes")
    with pytest.raises(RuntimeError, match="something"), tried("a step"):
        raise RuntimeError("something else")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_interrupted_dry_run_leaves_nothing(
    number: signal.Signals,
    tmp_path: Path,
    text_file: Path,
    own_cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The signal comes while the process of the dry run is at work, and ends that, too."""
    (tmp_path / "tiny.yaml").write_text(SETTINGS)
    command = ["train", "--config", str(tmp_path / "tiny.yaml"), "--data", str(text_file), "--dry-run"]
    with when_it_works(own_cache, monkeypatch, lambda _: os.kill(os.getpid(), number)) as started:
        assert cli.main(command) == 128 + number
    printed = capsys.readouterr()
    assert (
        printed.err.count("\n") == 1 and printed.err.startswith("nanokimi: interrupted") and printed.out == ""
    )
    assert not list(own_cache.glob("dry-run-*")) and not started[0].is_alive()


@contextmanager
def when_it_works(
    cache: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[BaseProcess], None]
) -> Iterator[list[BaseProcess]]:
    """Call `act` with the dry run's process once that has begun. Yields the list that will hold the process."""
    started: list[BaseProcess] = []
    original = module.start_process

    def start(*given: Any, **named: Any) -> Any:
        process, connection = original(*given, **named)
        started.append(process)
        return process, connection

    def wait_and_act() -> None:
        deadline = time.monotonic() + PATIENCE
        while not list(cache.glob("dry-run-*/config.yaml")) and time.monotonic() < deadline:
            time.sleep(0.005)
        act(started[0])

    monkeypatch.setattr(module, "start_process", start)
    thread = threading.Thread(target=wait_and_act)
    thread.start()
    yield started
    thread.join()


def test_a_dry_run_that_the_system_kills_is_said_in_one_line(
    tmp_path: Path,
    text_file: Path,
    own_cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it does when memory runs out: it used to say nothing."""
    (tmp_path / "tiny.yaml").write_text(SETTINGS)
    command = ["train", "--config", str(tmp_path / "tiny.yaml"), "--data", str(text_file), "--dry-run"]
    with when_it_works(own_cache, monkeypatch, lambda process: process.kill()):
        assert cli.main(command) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "SIGKILL" in printed.err and "micro_batch_size" in printed.err
    assert printed.out == "" and not list(own_cache.glob("dry-run-*"))
