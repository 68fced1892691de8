"""train.compile: the same training, resumed bit for bit, and refused where torch.compile fails or strays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import study_command, write_study_files

from nanokimi import cli
from nanokimi.config import ModelName, RunConfig
from nanokimi.config.files import load_config
from nanokimi.data.store import open_prepared
from nanokimi.errors import TrainingError
from nanokimi.runtime.device import cpu_has_fast_bf16
from nanokimi.runtime.files import read_json, read_json_lines
from nanokimi.train.checkpoint import load_newest_checkpoint
from nanokimi.train.compiled import compile_step
from nanokimi.train.loop import train
from nanokimi.train.runs import find_data, set_up
from nanokimi.train.state import TrainState, build_state

Build = Callable[..., RunConfig]
DTYPES = ["fp32", "bf16"] if cpu_has_fast_bf16() else ["fp32"]
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler on a CPU"
)


def begin(config: RunConfig, folder: Path) -> TrainState:
    folder.mkdir()
    return build_state(*set_up(config, folder), folder)


def losses(state: TrainState) -> list[float]:
    lines = read_json_lines(state.folder / "metrics.jsonl")
    return [line["loss"] for line in lines if line["kind"] == "train"]


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["nanokimi", "nanogpt"])
def test_compiled_training_is_the_same_and_resumes_bit_for_bit(
    name: ModelName, dtype: Any, tiny_config: Build, tmp_path: Path
) -> None:
    config = replace(tiny_config(max_steps=8, eval_every=4, dtype=dtype), model=name)
    plain = begin(config, tmp_path / "plain")
    list(train(plain))
    config = replace(config, train=replace(config.train, compile=True))
    whole = begin(config, tmp_path / "whole")
    records = train(whole)
    first = next(records)
    assert first["kind"] == "compiled" and 0 < first["seconds"] == whole.compile_seconds
    assert first["train_seconds"] == 0, "compiling is no training"
    assert whole.compiled is not None and all(p.grad is None for p in whole.model.parameters())
    fresh = begin(config, tmp_path / "fresh")
    assert all(map(torch.equal, whole.model.parameters(), fresh.model.parameters())), "no weight changes"
    list(records)
    assert losses(whole) == pytest.approx(losses(plain), rel=1e-4 if dtype == "fp32" else 0.02)

    broken = begin(config, tmp_path / "broken")
    for record in train(broken):
        broken.stop_requested |= record["kind"] == "train" and record["step"] == 3
    folder = broken.folder
    resumed = build_state(load_config(str(folder / "config.yaml")), open_prepared(find_data(folder)), folder)
    assert load_newest_checkpoint(resumed) and resumed.step == 3
    list(train(resumed))
    assert losses(resumed) == losses(whole)
    assert all(map(torch.equal, resumed.model.parameters(), whole.model.parameters()))


@needs_compiler
def test_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study_files(tmp_path, steps=3)
    words = study_command(tmp_path, "train", "--train.compile", "true", "--model", "nanogpt")
    assert cli.main([*words, "--dry-run"]) == 0
    assert "compiling" in capsys.readouterr().out
    assert cli.main(words) == 0
    result = read_json(tmp_path / "out" / "result.json")
    assert result["audit"]["causal"] and result["compile_seconds"] > 0


def test_what_strays_is_refused(tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = begin(tiny_config(compile=True), tmp_path / "run")

    def wrong(model: torch.nn.Module, **_: object) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = model(*args, **kwargs)
            return output._replace(logits_BTW=output.logits_BTW * 1.5)

        return forward

    monkeypatch.setattr(torch, "compile", wrong)
    with pytest.raises(TrainingError, match="computes something else"):
        compile_step(state)


def test_without_a_compiler_one_line_says_so(tmp_path: Path) -> None:
    write_study_files(tmp_path, steps=3)
    command = study_command(tmp_path, "train", "--train.compile", "true", "--model", "nanogpt")
    environment = {"CXX": "/no/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    done = subprocess.run(
        [sys.executable, "-m", "nanokimi", *command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1, done.stderr
    assert last.startswith("nanokimi: torch.compile fails here") and "leave out train.compile" in last
    assert "Traceback" not in done.stderr
