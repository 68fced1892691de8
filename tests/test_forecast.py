"""The dry run: counts are exactly those of the run that follows, memory is near, and only prepared data stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, make_text

from nanokimi import cli
from nanokimi.config import RunConfig
from nanokimi.config.files import save_config
from nanokimi.errors import TrainingError
from nanokimi.profiling import forecast as module
from nanokimi.profiling.forecast import Forecast, forecast
from nanokimi.profiling.trials import how_often
from nanokimi.runtime.files import read_json, read_json_lines

SETTINGS = """\
seed: 7
train: {context_length: 16, batch_size: 8, max_epochs: 0.5, eval_every: 6, save_every: 4, device: cpu, threads: 1}
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
    printed: str
    left: list[str]  # everything below the folder after the dry run
    out: Path
    found: Forecast


def paths(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("forecast")
    (folder / "tiny.yaml").write_text(SETTINGS)
    (folder / "text.txt").write_text(make_text())
    environment = {**os.environ, "NANOKIMI_CACHE": str(folder / "cache"), "TMPDIR": str(folder)}
    command = [sys.executable, "-m", "nanokimi", "train", "--config", "tiny.yaml", "--data", "text.txt"]

    def run(*options: str) -> str:
        done = subprocess.run(
            [*command, *options],
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    printed = run("--dry-run")
    left = paths(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOKIMI_CACHE", str(folder / "cache"))
        from nanokimi.config.files import load_config

        config = load_config(str(folder / "tiny.yaml"), ["--data", str(folder / "text.txt")])
        found = forecast(config, folder / "runs" / "one")
    run("--out", "runs/one")
    return Pair(folder, printed, left, folder / "runs" / "one", found)


def test_counts_are_those_of_the_run(pair: Pair) -> None:
    result, data = read_json(pair.out / "result.json"), read_json(pair.out / "data" / "data.json")
    for name in ("steps", "tokens", "params_total", "params_active", "optimizer_state_bytes"):
        assert getattr(pair.found, name.replace("_state", "")) == result[name], name
    assert (pair.found.train_tokens, pair.found.val_tokens) == (data["train_tokens"], data["val_tokens"])
    records = read_json_lines(pair.out / "metrics.jsonl")
    counts = {kind: sum(record["kind"] == kind for record in records) for kind in ("eval", "sample")}
    assert counts == {
        "eval": pair.found.phases["validations"].count,
        "sample": pair.found.phases["stories"].count,
    }
    assert pair.found.gradient_bytes == 4 * result["params_total"] <= pair.found.weights_bytes


def test_memory_and_disk_are_near_those_of_the_run(pair: Pair) -> None:
    measured = read_json(pair.out / "result.json")["peak_memory_bytes"]
    assert 0.75 < pair.found.peak_memory_bytes / measured < 1.25
    disk = sum(path.stat().st_size for path in pair.out.rglob("*") if path.is_file())
    assert 0.75 < pair.found.disk_bytes / disk < 1.75, "one checkpoint more while an old one still stands"
    [one] = {
        sum(file.stat().st_size for file in folder.iterdir() if file.suffix == ".safetensors")
        for folder in (pair.out / "checkpoints").iterdir()
    }
    assert one < pair.found.checkpoint_bytes < 1.2 * one + 4000


def test_a_dry_run_leaves_only_prepared_data_which_the_run_finds(pair: Pair) -> None:
    torch_s_own = "torchinductor_"  # an empty folder that torch makes in $TMPDIR when imported
    outside = [path for path in pair.left if not path.startswith(("cache", torch_s_own))]
    assert outside == ["text.txt", "tiny.yaml"]
    assert not [path for path in pair.left if "dry-run" in path]
    assert [path for path in paths(pair.folder) if path.startswith("cache")] == [
        path for path in pair.left if path.startswith("cache")
    ], "the run prepared nothing anew"


def test_the_table_says_all_of_it(pair: Pair) -> None:
    steps = f"{pair.found.steps:,} steps"
    for part in ("parameters", steps, "weights", "gradients", "optimizer state", "peak in training", "disk"):
        assert f"\n{part} " in pair.printed or part == steps, part
    for phase in ("validations", "stories", "checkpoints", "audit", "measuring at the end", "whole run"):
        assert phase in pair.printed, phase
    assert steps in pair.printed and "the tokens stay in the cache" in pair.printed
    assert max(map(len, pair.printed.splitlines())) < 100


@pytest.mark.parametrize(
    ("steps", "every", "looks"), [(12, 6, 3), (13, 6, 4), (5, 6, 2), (6, 6, 2), (1, 1, 2)]
)
def test_what_is_due_at_the_end_is_done_once(
    steps: int, every: int, looks: int, tiny_config: Callable[..., RunConfig]
) -> None:
    counts = how_often(tiny_config(eval_every=every, save_every=every), steps, 0.01)
    assert counts["validations"] == counts["stories"] == looks and counts["checkpoints"] == looks - 1


def test_a_budget_in_seconds_becomes_expected_steps(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(tiny_config(max_steps=None, max_seconds=60.0), model="nanogpt")
    save_config(config, tmp_path / "config.yaml")
    assert cli.main(["train", "--config", str(tmp_path / "config.yaml"), "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("NanoGPT") and "expected; the budget is in seconds" in printed


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
        ("--data short.txt", "has 5 characters: validation"),  # found in the measuring process
        (f"--data {text_file} --out taken", "never overwrites"),
        (f"--data {text_file} --train.device tpu", "train.device is 'tpu'"),
        (f"--data {text_file} --resume --out taken", "leave out --resume"),
        (f"--data {text_file} --dry-run=yes", "takes no value"),
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


def killed(connection: Connection, folder: str, plugins: object = ()) -> None:
    """What the system does to a process that takes too much memory."""
    connection.send(("stage", "training steps of something"))
    os.kill(os.getpid(), signal.SIGKILL)


def ended(connection: Connection, folder: str, plugins: object = ()) -> None:
    os._exit(3)


def allocator(*ignored: Any) -> Forecast:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory:\n you tried to allocate 9 bytes")


def other_error(*ignored: Any) -> Forecast:
    raise RuntimeError("something\nelse")


@pytest.mark.parametrize(
    ("life", "message"),
    [(killed, "too little memory, tried: training steps of something"), (ended, "exit code 3: starting")],
)
def test_a_process_that_dies_is_one_line(
    life: Callable[..., None],
    message: str,
    tiny_config: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    own_cache: Path,
) -> None:
    monkeypatch.setattr(module, "work", life)
    with pytest.raises(TrainingError, match=message):
        forecast(tiny_config(), tmp_path / "out")
    assert not list(own_cache.glob("dry-run-*"))


@pytest.mark.parametrize(
    ("measure", "kind", "text"),
    [(allocator, "memory", "starting"), (other_error, "error", "something else")],
)
def test_an_allocator_that_gives_up_is_told_from_other_errors(
    measure: Callable[..., Forecast],
    kind: str,
    text: str,
    tiny_config: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    sent: list[tuple[str, str]] = []

    class Pipe:
        send = staticmethod(sent.append)

    save_config(tiny_config(), tmp_path / "config.yaml")
    monkeypatch.setattr(module, "measure", measure)
    module.work(Pipe(), str(tmp_path))  # type: ignore[arg-type]
    assert sent == [(kind, text)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_interrupted_dry_run_leaves_nothing(
    number: signal.Signals, tmp_path: Path, text_file: Path, own_cache: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(SETTINGS)
    command = [sys.executable, "-m", "nanokimi", "train", "--config", str(tmp_path / "tiny.yaml")]
    process = subprocess.Popen(
        [*command, "--data", str(text_file), "--train.max_epochs", "10000", "--dry-run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + PATIENCE
    while not list(own_cache.glob("dry-run-*/run/config.yaml")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    printed, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number, errors
    assert errors.count("\n") == 1 and errors.startswith("nanokimi: interrupted") and printed == ""
    assert not list(own_cache.glob("dry-run-*"))
