"""train.compile: the same training, resumed bit for bit, and refused where torch.compile fails or strays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PATIENCE, study_command, write_study_files
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config

from nanokimi import cli
from nanokimi.config import ModelName, RunConfig
from nanokimi.config.parsing import with_changes
from nanokimi.errors import TrainingError
from nanokimi.runtime.device import cpu_has_fast_bf16
from nanokimi.runtime.files import read_json, read_json_lines
from nanokimi.train.loop import step_and_recover, train
from nanokimi.train.run_folder import set_up
from nanokimi.train.state import TrainState, build_state
from nanokimi.train.torch_compile import compile_step

Build = Callable[..., RunConfig]
DTYPES = ["fp32", "bf16"] if cpu_has_fast_bf16() else ["fp32"]
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler on a CPU"
)


def begin(config: RunConfig, folder: Path) -> TrainState:
    folder.mkdir()
    return build_state(*set_up(config, folder), folder)


def losses(folder: Path) -> list[float]:
    lines = read_json_lines(folder / "metrics.jsonl")
    return [line["loss"] for line in lines if line["kind"] == "train"]


def graphs() -> int:
    """Pieces that torch.compile has made since the counters were cleared."""
    return counters["stats"]["unique_graphs"]


def plain_and_compiled(name: ModelName, dtype: Any, build: Build, folder: Path) -> TrainState:
    """Train without and with torch.compile, and require equal losses; returns the compiled run.

    Beside it, the folder `broken` is left as a run that was killed after its fourth step and saved its third.
    """
    config = replace(build(max_steps=6, eval_every=3, save_every=3, dtype=dtype), model=name)
    if dtype == "fp32":
        # one layer, with experts, because g++ takes half a minute for each; in bf16 there are two, one of them dense
        one_layer = {f"{family}.model.num_hidden_layers": 1 for family in ("nanokimi", "nanogpt")}
        config = with_changes(config, {**one_layer, "nanokimi.model.first_k_dense_replace": 0})
        # bf16 in Newton-Schulz would make much of what differs in the last bits of a gradient
        optim = replace(config.nanokimi.optim, ns_dtype="fp32")
        config = replace(config, nanokimi=replace(config.nanokimi, optim=optim))
    plain = begin(config, folder / "plain")
    list(train(plain))
    config = replace(config, train=replace(config.train, compile=True))
    whole, fresh = begin(config, folder / "whole"), begin(config, folder / "fresh")
    counters.clear()
    for record in train(whole):
        if record["kind"] == "compiled":
            assert 0 < record["seconds"] == whole.compile_seconds and whole.train_seconds == 0
            assert all(map(torch.equal, whole.model.parameters(), fresh.model.parameters()))
            assert all(p.grad is None for p in whole.model.parameters())
        elif record["kind"] == "train" and record["step"] == 4:
            shutil.copytree(whole.folder, folder / "broken")
    assert graphs() == 1 or (name, dtype) == ("nanokimi", "fp32") and graphs() > 1
    assert losses(whole.folder) == pytest.approx(losses(plain.folder), rel=1e-4 if dtype == "fp32" else 0.02)
    return whole


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_training_is_the_same(dtype: Any, tiny_config: Build, tmp_path: Path) -> None:
    plain_and_compiled("nanogpt", dtype, tiny_config, tmp_path)


@needs_compiler
@pytest.mark.parametrize(
    "dtype", [DTYPES[0], *(pytest.param(one, marks=pytest.mark.slow) for one in DTYPES[1:])]
)
def test_compiled_training_with_experts_is_the_same_and_resumes_bit_for_bit(
    dtype: Any, tiny_config: Build, tmp_path: Path
) -> None:
    whole, broken = plain_and_compiled("nanokimi", dtype, tiny_config, tmp_path), tmp_path / "broken"
    command = [sys.executable, "-m", "nanokimi", "train", "--resume", "--out", str(broken)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert losses(broken) == losses(whole.folder)
    weights = load_file(broken / "model.safetensors")
    kept = whole.model.state_dict()
    assert all(torch.equal(weight, kept[name]) for name, weight in weights.items())


def only_compiled(state: TrainState) -> Iterator[dict[str, Any]]:
    return (record for record in train(state) if record["kind"] in ("compiled", "event"))


@needs_compiler
def test_memory_that_runs_out_halves_the_micro_batch_and_compiles_anew(
    tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = begin(replace(tiny_config(max_steps=3, compile=True), model="nanogpt"), tmp_path / "run")

    def tight(x: torch.Tensor, *given: Any, f: Any = state.model.lm_head.forward) -> Any:
        if torch.is_grad_enabled() and len(x) > (8 if state.step < 2 else 4):
            raise torch.OutOfMemoryError("out of memory")
        return f(x, *given)

    monkeypatch.setattr(state.model.lm_head, "forward", tight)
    kinds = [record["kind"] for record in only_compiled(state)]
    assert state.step == 3 and kinds == ["compiled", "event", "compiled"]
    assert state.micro_batch_size == 4


@needs_compiler
def test_a_loss_that_is_not_finite_is_skipped_also_when_it_is_the_first(
    tiny_config: Build, tmp_path: Path
) -> None:
    config = tiny_config(max_steps=2, compile=True, on_nonfinite="skip")
    state = begin(replace(config, model="nanogpt"), tmp_path / "run")
    sound = state.model.lm_head.weight.detach().clone()
    with torch.no_grad():
        state.model.lm_head.weight[0, 0] = float("nan")
    compiling, compiled, event = step_and_recover(state)
    assert compiled["differences"] is None and event["event"] == "nonfinite_skipped"
    with torch.no_grad():
        state.model.lm_head.weight.copy_(sound)
    assert [record["kind"] for record in step_and_recover(state)] == ["train"]


@needs_compiler
def test_code_for_another_processor_is_not_taken_from_the_cache(
    tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would write past its buffers: its vectors have another length, which torch's key of a graph does not name."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    state = begin(replace(tiny_config(compile=True), model="nanogpt"), tmp_path / "run")
    found = []
    with torch.compiler.config.patch(cache_key_tag="the-user's"):
        for capability in ("AVX512", "AVX512", "AVX2"):
            monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=capability: name)
            counters.clear()
            compile_step(state)
            found.append({key: counters["inductor"][f"fxgraph_cache_{key}"] > 0 for key in ("hit", "miss")})
        theirs, own = torch.compiler.config.cache_key_tag.split()
    assert [one["miss"] for one in found] == [True, False, True]
    assert [one["hit"] for one in found] == [False, True, False]
    assert theirs == "the-user's" and own.startswith("nanokimi-")


@needs_compiler
def test_variants_compile(tiny_config: Build, tmp_path: Path) -> None:
    config = replace(tiny_config(max_steps=2, compile=True), model="variant")
    parts = {"attention": "latent", "num_latents": 3, "experts": "topk", "feed_forward": "relu2"}
    config = with_changes(config, {f"variant.model.{key}": value for key, value in parts.items()})
    state = begin(config, tmp_path / "run")
    (record,) = only_compiled(state)
    assert max(record["differences"]) < 1e-3 and state.step == 2


@needs_compiler
def test_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study_files(tmp_path, steps=3)
    words = study_command(tmp_path, "train", "--train.compile", "true", "--model", "nanogpt")
    assert cli.main([*words, "--dry-run"]) == 0
    assert "compiling" in capsys.readouterr().out
    assert cli.main(words) == 0
    result = read_json(tmp_path / "out" / "result.json")
    assert result["audit"]["causal"] and result["compile_seconds"] > 0


@pytest.mark.parametrize("part", ["loss", "gradient", "nan"])
def test_what_strays_is_refused(
    part: str, tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = begin(tiny_config(compile=True), tmp_path / "run")

    def wrong(model: torch.nn.Module, **_: object) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = model(*args, **kwargs)
            logits = output.logits_BTW
            if part == "gradient":  # the same loss and size of the gradient, the other way
                return output._replace(logits_BTW=2 * logits.detach() - logits)
            return output._replace(logits_BTW=logits * (1.5 if part == "loss" else float("nan")))

        return forward

    monkeypatch.setattr(torch, "compile", wrong)
    with pytest.raises(TrainingError, match="computes something else"):
        compile_step(state)


def test_without_a_compiler_one_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study_files(tmp_path, steps=3)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    with inductor_config.patch({"cpp.cxx": ("/no/compiler",)}):  # what torch reads CXX into
        status = cli.main(study_command(tmp_path, "train", "--train.compile", "true", "--model", "nanogpt"))
    errors = capsys.readouterr().err
    last = errors.strip().splitlines()[-1]
    assert status == 1, errors
    assert last.startswith("nanokimi: torch.compile fails here") and "leave out train.compile" in last
    assert "Traceback" not in errors
