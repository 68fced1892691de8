"""Faults put in on purpose: memory that runs out, numbers that are not finite, disks that are full or read-only."""

from __future__ import annotations

import errno
import itertools
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import PATIENCE
from safetensors.torch import load_file

from nanokimi import cli
from nanokimi.cli import verbs
from nanokimi.compare import arm_process
from nanokimi.config import ModelName, OptimConfig, RunConfig, SampleConfig
from nanokimi.config.files import load_config, save_config
from nanokimi.config.rules import OPTIMIZERS
from nanokimi.data.store import open_prepared
from nanokimi.errors import TrainingError
from nanokimi.runtime.device import is_out_of_memory
from nanokimi.runtime.files import append_json_line, find_damage, read_json, read_json_lines
from nanokimi.train import evaluation
from nanokimi.train import recovery as survive
from nanokimi.train.checkpoint import load_newest_checkpoint, save_checkpoint
from nanokimi.train.finite import first_not_finite, named_if_not_finite
from nanokimi.train.loop import train
from nanokimi.train.run_folder import find_data, set_up
from nanokimi.train.state import TrainState, build_state
from nanokimi.train.step import NotFinite, train_step

Build = Callable[..., RunConfig]
MODELS: tuple[ModelName, ...] = ("nanokimi", "nanogpt")
CLOCKS = {"step_ms", "memory_bytes", "train_seconds"}


def begin(config: RunConfig, folder: Path) -> TrainState:
    folder.mkdir()
    return build_state(*set_up(config, folder), folder)


def small(config: RunConfig) -> RunConfig:
    """The run with NanoGPT, whose steps take the least time."""
    return replace(config, model="nanogpt")


def reopen(folder: Path) -> TrainState:
    return build_state(load_config(str(folder / "config.yaml")), open_prepared(find_data(folder)), folder)


def timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if key not in CLOCKS}
        for record in records
        if record["kind"] != "event"
    ]


def events(records: list[dict[str, Any]]) -> list[str]:
    return [record["event"] for record in records if record["kind"] == "event"]


def same_weights(one: TrainState, other: TrainState) -> bool:
    a, b = one.model.state_dict(), other.model.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


OUT_OF_MEMORY: dict[str, Exception] = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
    "CPU": RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    ),
}

# ---- memory


@pytest.mark.parametrize(("name", "kinds"), [("nanokimi", ["CPU"]), ("nanogpt", list(OUT_OF_MEMORY))])
def test_out_of_memory_going_forward_or_backward_halves_the_micro_batch(
    name: ModelName,
    kinds: list[str],
    tiny_config: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the first step the result is that of a run with the smaller micro-batch, bit for bit.

    Every kind of error comes in both places with NanoGPT, and one with NanoKimi.
    """
    config = replace(tiny_config(max_steps=6, eval_every=3), model=name)
    halved = begin(replace(config, train=replace(config.train, micro_batch_size=4)), tmp_path / "halved")
    expected = list(train(halved))
    for where, kind in itertools.product(("forward", "backward"), kinds):
        state = begin(config, tmp_path / f"{where}-{kind}")
        left = [1]

        def forward(
            *given: Any,
            f: Any = state.model.lm_head.forward,
            state: Any = state,
            left: Any = left,
            error: Exception = OUT_OF_MEMORY[kind],
        ) -> Any:
            if state.model.training and left[0]:  # validations are in no danger
                left[0] = 0
                raise error
            return f(*given)

        def backward(
            loss: Any,
            *given: Any,
            f: Any = torch.Tensor.backward,
            left: Any = left,
            error: Exception = OUT_OF_MEMORY[kind],
        ) -> None:
            f(loss, *given)
            if left[0]:
                left[0] = 0
                raise error  # with all gradients there

        if where == "forward":
            monkeypatch.setattr(state.model.lm_head, "forward", forward)
        else:
            monkeypatch.setattr(torch.Tensor, "backward", backward)
        records = list(train(state))
        monkeypatch.undo()
        assert events(records) == ["out_of_memory"], (where, kind)
        assert state.micro_batch_size == 4 and same_weights(state, halved)
        assert timeless(records) == timeless(expected)
        detail = next(r["detail"] for r in records if r["kind"] == "event")
        assert "step 1" in detail and "2 passes of 4" in detail


@pytest.mark.parametrize(
    "says",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        *(str(error) for error in OUT_OF_MEMORY.values()),
    ],
)
def test_libraries_without_room_are_out_of_memory(says: str) -> None:
    assert is_out_of_memory(RuntimeError(says)) and not is_out_of_memory(ValueError(says))
    for other in ("EXECUTION_FAILED", "NOT_INITIALIZED"):
        call = "when calling `cublasSgemm( handle, opa, opb, m, n, k)`"
        assert not is_out_of_memory(RuntimeError(f"CUDA error: CUBLAS_STATUS_{other} {call}"))


@pytest.mark.parametrize("fault", [OUT_OF_MEMORY["CUDA"], NotFinite("the gradient is not finite")])
def test_a_step_in_fp16_that_fails_after_unscaling_is_repeated(
    fault: Exception, tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scaler would refuse to unscale the same step twice."""
    config = small(tiny_config(max_steps=3, dtype="fp16", on_nonfinite="skip"))
    state, left = begin(config, tmp_path / "run"), [1]

    def norm(*given: Any, f: Any = torch.nn.utils.get_total_norm) -> Any:
        if left[0]:
            left[0] = 0
            raise fault
        return f(*given)

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", norm)
    scale = state.scaler.get_scale()
    records = list(train(state))
    assert len(events(records)) == 1 and state.step == 3
    assert state.scaler.get_scale() == scale


def test_out_of_memory_later_changes_nothing_before_it(
    tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps before keep their numbers; the step itself and those after it see the same tokens."""
    config = small(tiny_config())
    whole = begin(config, tmp_path / "whole")
    expected = timeless(list(train(whole)))
    state = begin(config, tmp_path / "run")
    left = [6]

    def backward(loss: torch.Tensor, *given: Any, f: Any = torch.Tensor.backward) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OUT_OF_MEMORY["CPU"]
        f(loss, *given)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    records = timeless(list(train(state)))
    first = [r["step"] for r in expected].index(6)
    assert records[:first] == expected[:first]
    losses = [[r["loss"] for r in run if r["kind"] == "train"] for run in (records, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert state.micro_batch_size == 4 and state.tokens == whole.tokens


@pytest.mark.parametrize(("name", "step"), [("nanokimi", 1), ("nanokimi", 5), ("nanogpt", 9)])
def test_out_of_memory_in_the_optimizer_goes_back_to_whole_weights(
    name: ModelName, step: int, tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update may be half done: from the newest checkpoint on, everything is as after a resumption."""
    config = replace(tiny_config(save_every=4, eval_every=12), model=name)
    state = begin(config, tmp_path / "run")

    def spoil(*given: Any, f: Any = state.optimizer.step, **named: Any) -> Any:
        result = f(*given, **named)
        with torch.no_grad():
            if state.step == step - 1 and state.micro_batch_size == 8:
                next(state.model.parameters()).add_(1.0)  # half of it was done
                raise OUT_OF_MEMORY["CUDA"]
        return result

    monkeypatch.setattr(state.optimizer, "step", spoil)
    records = list(train(state))
    start = (step - 1) // 4 * 4
    other = begin(config, tmp_path / "other")
    for record in train(other):
        if record["kind"] == "train" and record["step"] == start:
            other.micro_batch_size = 4
            break
    if start == 0:
        other = begin(replace(config, train=replace(config.train, micro_batch_size=4)), tmp_path / "halved")
    list(train(other))
    assert same_weights(state, other) and state.step == 12
    assert events(records) == ["out_of_memory"]
    written = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in written if r["kind"] == "train"] == list(range(1, 13)), "none twice"


def test_at_one_sequence_activations_are_recomputed_and_then_it_is_said_what_fits(
    tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = begin(small(tiny_config(context_length=32)), tmp_path / "run")
    seen = []

    def tight(x: torch.Tensor, *given: Any, f: Any = state.model.lm_head.forward) -> Any:
        if state.model.training and x.shape[0] * x.shape[1] > 8:
            seen.append((state.micro_batch_size, state.model.activation_checkpointing))
            raise OUT_OF_MEMORY["CPU"]
        return f(x, *given)

    monkeypatch.setattr(state.model.lm_head, "forward", tight)
    with pytest.raises(TrainingError, match="train.context_length 8 goes through") as caught:
        list(train(state))
    assert seen[:5] == [(8, False), (4, False), (2, False), (1, False), (1, True)]
    assert "\n" not in str(caught.value)
    assert all(p.grad is None for p in state.model.parameters())


def test_a_smaller_micro_batch_survives_an_interruption(
    tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(tiny_config())
    whole, state = begin(config, tmp_path / "whole"), begin(config, tmp_path / "run")
    for one in (whole, state):
        one.micro_batch_size = 2
        one.model.activation_checkpointing = True
    list(train(whole))
    for record in train(state):
        state.stop_requested = record["step"] == 5
    resumed = reopen(tmp_path / "run")
    assert load_newest_checkpoint(resumed)
    assert resumed.micro_batch_size == 2 and resumed.model.activation_checkpointing
    list(train(resumed))
    assert same_weights(whole, resumed)


def test_validation_takes_fewer_windows_at_a_time_when_memory_runs_out(
    tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = begin(tiny_config(), tmp_path / "run")
    expected = evaluation.evaluate_now(state).loss

    def tight(x: torch.Tensor, *given: Any, f: Any = state.model.lm_head.forward) -> Any:
        if x.shape[0] > 3:
            raise OUT_OF_MEMORY["CPU"]
        return f(x, *given)

    monkeypatch.setattr(state.model.lm_head, "forward", tight)
    assert evaluation.evaluate_now(state).loss == pytest.approx(expected, rel=1e-6)

    def none(*_: Any) -> None:
        raise OUT_OF_MEMORY["CUDA"]

    monkeypatch.setattr(state.model.lm_head, "forward", none)
    with pytest.raises(
        TrainingError, match="out of memory after step 0 while scoring one window of 16 tokens"
    ):
        evaluation.evaluate_now(state)


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_memory_that_runs_out_outside_of_a_step_is_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that does not fit onto the device was a traceback: torch's error is no MemoryError."""
    error = OUT_OF_MEMORY[kind]

    def raises(*_: object) -> None:
        raise error

    monkeypatch.setattr(verbs, "run_train", raises)
    assert cli.main(["train"]) == 1
    assert capsys.readouterr().err == f"nanokimi: {error}\n"

    told: list[tuple[str, str]] = []
    monkeypatch.setattr(arm_process, "_serve", raises)
    for name in ("ignore_signals", "say_nothing"):  # this process goes on
        monkeypatch.setattr(arm_process, name, lambda: None)
    arm_process.serve_turns(SimpleNamespace(send=told.append), str(tmp_path), False, False)  # type: ignore[arg-type]
    assert told == [("training error", str(error))] and not (tmp_path / "error.txt").exists()

    error = RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="shapes differ"):
        cli.main(["train"])


ROOM_GB = 0.25  # of a run whose whole batch takes twice that


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a process's data is Linux's")
def test_a_real_limit_on_memory_is_kept_by_smaller_micro_batches(tiny_config: Build, tmp_path: Path) -> None:
    """No injection: the system refuses the allocation, in a process of its own.

    The limit leaves as much beside the process as it begins, which is larger with a torch built for CUDA.
    """
    config = small(tiny_config(max_steps=1, batch_size=2560, eval_batch_size=8))
    model = replace(config.nanogpt.model, hidden_size=128)
    config = replace(config, nanogpt=replace(config.nanogpt, model=model))
    done = {}
    limit = None
    for name in ("free", "limited"):
        settings, out = tmp_path / f"{name}.yaml", tmp_path / name
        save_config(replace(config, train=replace(config.train, memory_limit_gb=limit)), settings)
        command = [sys.executable, "-m", "nanokimi", "train", "--config", str(settings), "--out", str(out)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert ended.returncode == 0, ended.stderr
        done[name] = read_json(out / "result.json")
        limit = done["free"]["idle_memory_bytes"] / 1e9 + ROOM_GB
    # code that is loaded after the limit was set is not counted by the system
    assert limit is not None and done["free"]["peak_memory_bytes"] > (limit + 0.3) * 1e9
    assert done["limited"]["peak_memory_bytes"] < (limit + 0.07) * 1e9
    assert done["free"]["micro_batch_size"] == 2560 > done["limited"]["micro_batch_size"]
    assert done["limited"]["val_loss"] == pytest.approx(done["free"]["val_loss"], abs=1e-3)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a process's data is Linux's")
def test_numpy_multiplies_where_nothing_more_can_be_allocated() -> None:
    code = (
        "import numpy as np, torch\n"
        "from nanokimi.runtime.device import limit_memory, memory_bytes\n"
        "a, c, cpu = np.ones((300, 300)), np.ones((300, 300)), torch.device('cpu')\n"
        "limit_memory(memory_bytes(cpu) / 1e9 + 0.002, cpu)\n"
        "np.matmul(a, a, out=c)\n"
        "print(c[0, 0])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stdout.strip()) == (0, "300.0"), ended.stderr


# ---- numbers


def break_step(state: TrainState, steps: set[int], module: torch.nn.Module) -> None:
    """Let a module's output be infinite while these steps are taken."""

    def spoil(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor | None:
        return output * math.inf if state.model.training and state.step + 1 in steps else None

    module.register_forward_hook(spoil)


@pytest.mark.parametrize("name", MODELS)
def test_stop_names_the_module_and_keeps_the_batch_and_the_state(
    name: ModelName, tiny_config: Build, tmp_path: Path
) -> None:
    config = replace(tiny_config(), model=name)
    state = begin(config, tmp_path / "run")
    modules = dict(state.model.named_modules())
    module = {"nanokimi": "model.layers.1.self_attn.o_proj", "nanogpt": "transformer.h.1.mlp.c_fc"}[name]
    break_step(state, {5}, modules[module])
    with pytest.raises(TrainingError, match=module) as caught:
        list(train(state))
    assert "loss at step 5" in str(caught.value) and "\n" not in str(caught.value)
    folder = tmp_path / "run" / "nonfinite" / "step-00000005"
    assert read_json(folder / "report.json")["first_not_finite"] == module
    batch = load_file(folder / "batch.safetensors")
    from nanokimi.train.step import training_batch

    assert torch.equal(batch["inputs"], training_batch(state)[0])
    whole = begin(config, tmp_path / "whole")
    for record in train(whole):
        whole.stop_requested = record["step"] == 4
    resumed = reopen(tmp_path / "run")
    assert load_newest_checkpoint(resumed) and resumed.step == 4, "the state before the broken update"
    assert same_weights(resumed, whole)


def test_broken_weights_and_broken_gradients_are_named(tiny_config: Build, tmp_path: Path) -> None:
    state = begin(tiny_config(), tmp_path / "weights")
    train_step(state)
    with torch.no_grad():
        state.model.model.layers[0].mlp.down_proj.weight[0, 0] = math.nan
    assert (
        survive.first_non_finite_module(state)
        == "model.layers.0.mlp.down_proj, whose weight is not finite already"
    )
    state = begin(tiny_config(), tmp_path / "gradient")
    state.model.model.layers[1].self_attn.register_full_backward_pre_hook(
        lambda _, gradients: tuple(None if g is None else g * math.inf for g in gradients)
    )
    with pytest.raises(TrainingError, match="gradient"):
        train_step(state)
    assert "the gradient of model.layers.1.self_attn" in survive.first_non_finite_module(state)


@pytest.mark.parametrize("name", MODELS)
def test_skip_leaves_the_update_out_counts_it_and_goes_on(
    name: ModelName, tiny_config: Build, tmp_path: Path
) -> None:
    config = replace(tiny_config(on_nonfinite="skip"), model=name)
    state = begin(config, tmp_path / "run")
    break_step(state, {5, 6, 9}, state.model.lm_head)
    records = list(train(state))
    assert events(records) == ["nonfinite_skipped"] * 3 and state.batches_skipped == 3
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4, 7, 8, 10, 11, 12]
    assert all(p.isfinite().all() for p in state.model.parameters())
    assert all(math.isfinite(r["loss"]) for r in records if r["kind"] == "train")
    assert (tmp_path / "run" / "nonfinite" / "step-00000009" / "batch.safetensors").exists()


def test_a_run_that_skipped_resumes_bit_for_bit(tiny_config: Build, tmp_path: Path) -> None:
    config = small(tiny_config(on_nonfinite="skip", save_every=1))
    whole, state = begin(config, tmp_path / "whole"), begin(config, tmp_path / "run")
    for one in (whole, state):
        break_step(one, {5}, one.model.lm_head)
    list(train(whole))
    for record in train(state):
        state.stop_requested = record["step"] == 7
    resumed = reopen(tmp_path / "run")
    assert load_newest_checkpoint(resumed) and resumed.batches_skipped == 1
    list(train(resumed))
    assert same_weights(whole, resumed)


def test_rollback_takes_the_weights_of_the_newest_checkpoint_and_the_next_batch(
    tiny_config: Build, tmp_path: Path
) -> None:
    config = small(tiny_config(on_nonfinite="rollback", save_every=3, eval_every=12))
    state = begin(config, tmp_path / "run")
    break_step(state, {5}, state.model.lm_head)
    stream = train(state)
    for record in stream:
        if record["kind"] == "event":
            break
    assert record["event"] == "nonfinite_rolled_back" and "step 3" in record["detail"]
    assert (state.step, state.batches_skipped) == (5, 2), "of the updates, the fourth and fifth are gone"
    saved = reopen(tmp_path / "run")
    assert load_newest_checkpoint(saved) and saved.step == 3 and same_weights(saved, state)
    records = list(stream)
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(6, 13))


def test_rolling_back_again_and_again_counts_each_batch_once(tiny_config: Build, tmp_path: Path) -> None:
    config = small(tiny_config(on_nonfinite="rollback", save_every=3, eval_every=12))
    state = begin(config, tmp_path / "run")
    break_step(state, {5, 6, 8}, state.model.lm_head)
    list(train(state))
    # weights of step 3, with the batches of 7, then rolled back from 8 to the checkpoint of step 6
    assert state.batches_skipped == 8 - 3 and state.step == 12
    resumed = reopen(tmp_path / "run")
    assert load_newest_checkpoint(resumed) and resumed.batches_skipped == state.batches_skipped


def test_rollback_without_a_checkpoint_goes_back_to_the_beginning(tiny_config: Build, tmp_path: Path) -> None:
    config = small(tiny_config(on_nonfinite="rollback", save_every=100, eval_every=100))
    state, fresh = begin(config, tmp_path / "run"), begin(config, tmp_path / "fresh")
    break_step(state, {3}, state.model.lm_head)
    for record in train(state):
        if record["kind"] == "event":
            break
    assert same_weights(state, fresh) and not state.optimizer.state and state.step == 3


def test_a_skipped_first_step_leaves_a_budget_in_seconds_open(tiny_config: Build, tmp_path: Path) -> None:
    """It took no training time, by which the steps that the budget allows were divided: a traceback."""
    config = small(tiny_config(on_nonfinite="skip", max_steps=None, max_seconds=0.01, eval_every=1000))
    state = begin(config, tmp_path / "run")
    break_step(state, {1}, state.model.lm_head)
    records = list(train(state))
    assert events(records) == ["nonfinite_skipped"] and state.finished
    assert state.train_seconds >= 0.01


def test_ten_skips_in_a_row_end_the_run(tiny_config: Build, tmp_path: Path) -> None:
    state = begin(small(tiny_config(on_nonfinite="skip", max_steps=40)), tmp_path / "run")
    break_step(state, set(range(4, 40)), state.model.lm_head)
    with pytest.raises(TrainingError, match="10 skipped steps in a row"):
        list(train(state))


def test_updates_that_the_scaler_skips_are_counted_and_end(tiny_config: Build, tmp_path: Path) -> None:
    """A run in fp16 whose every gradient overflowed went on to its end, and counted no batch as skipped."""
    state = begin(small(tiny_config(dtype="fp16", max_steps=20)), tmp_path / "run")
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-12)
    weight = state.model.lm_head.weight
    before = weight.detach().clone()
    weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=r"gradient at step 3 .* scaled by 6e-05 .*the run is saved"):
        list(train(state))
    assert torch.equal(weight, before) and state.batches_skipped == 2
    resumed = reopen(state.folder)
    assert load_newest_checkpoint(resumed) and (resumed.step, resumed.batches_skipped) == (2, 2)


def with_rate(config: RunConfig, optimizer: str, lr: float) -> RunConfig:
    """The run with an optimizer at a rate from its first step on."""
    family = replace(config.family, optim=OptimConfig(name=optimizer, lr=lr, warmup_steps=0))
    return replace(config, **{config.model: family})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "optimizer", "lr"),
    [
        *(("nanokimi", optimizer, 2e5) for optimizer in sorted(OPTIMIZERS)),
        *(("nanogpt", optimizer, 1e40) for optimizer in ("adamw", "lion", "shampoo")),
    ],
)
def test_absurd_rates_end_in_one_line(
    name: ModelName, optimizer: str, lr: float, tiny_config: Build, tmp_path: Path
) -> None:
    """Whatever first holds a number that is not finite: a loss, a gradient, an update, the logits of telemetry."""
    config = replace(tiny_config(max_steps=3, eval_every=1, telemetry_every=1, save_every=1), model=name)
    config = replace(config, sample=SampleConfig(prompts=("the",), max_new_tokens=1))
    state = begin(with_rate(config, optimizer, lr), tmp_path / "run")
    with pytest.raises(TrainingError) as caught:
        list(train(state))
    line = str(caught.value)
    assert "\n" not in line and "lower the learning rate" in line
    assert "not finite" in line or "cannot be computed" in line or " is nan" in line
    assert read_json_lines(state.folder / "metrics.jsonl"), "what was written is whole"


def test_logits_of_telemetry_that_are_not_finite_are_named(tiny_config: Build, tmp_path: Path) -> None:
    """The estimate of logits from the weights overflows before the loss does."""
    state = begin(with_rate(tiny_config(telemetry_every=1), "muonclip", 2e5), tmp_path / "run")
    with pytest.raises(TrainingError, match=r"'attention' after step 1 .* rms_logits\[0\]\[0\] = inf"):
        list(train(state))


def test_a_checkpoint_with_a_number_that_is_not_finite_is_not_written(
    tiny_config: Build, tmp_path: Path
) -> None:
    state = begin(small(tiny_config()), tmp_path / "run")
    train_step(state)
    state.telemetry.max_logits_LH = torch.full((2, 2), math.inf)
    with pytest.raises(
        TrainingError, match=r"checkpoint after step 1 .* telemetry.max_logits_LH\[0\]\[0\] = inf"
    ):
        save_checkpoint(state)
    assert list((state.folder / "checkpoints").iterdir()) == []


def test_a_number_that_is_not_finite_is_found_anywhere() -> None:
    assert (
        first_not_finite({"a": [1.0, None, "inf", {"b": (2, -math.inf)}], "c": math.nan})
        == "a[3].b[1] = -inf"
    )
    assert first_not_finite({"a": [1e308, True, 10**400]}) is None
    with pytest.raises(ValueError, match="another"), named_if_not_finite({"a": 1.0}, "a record"):
        raise ValueError("another reason")


def test_the_command_line_stops_saves_and_continues_with_skip(
    tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nanokimi.train import run as alone

    def broken(*given: Any, f: Any = alone.build_state) -> TrainState:
        state = f(*given)
        break_step(state, {5}, state.model.lm_head)
        return state

    monkeypatch.setattr(alone, "build_state", broken)
    settings, out = tmp_path / "settings.yaml", tmp_path / "run"
    save_config(small(tiny_config()), settings)
    assert cli.main(["train", "--config", str(settings), "--out", str(out)]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "lm_head" in line and "--on-nonfinite skip" in line
    assert cli.main(["train", "--resume", "--out", str(out), "--on-nonfinite", "skip"]) == 0
    assert read_json(out / "result.json")["batches_skipped"] == 1


# ---- disk


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")


def test_a_record_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """A limit on file sizes cuts the write short, as a disk that fills up does."""
    path = tmp_path / "metrics.jsonl"
    append_json_line(path, {"step": 1})
    whole = path.read_bytes()
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from nanokimi.runtime.files import append_json_line\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))\n"
        "try: append_json_line(Path(sys.argv[1]), {'step': 2, 'text': 'x' * 100})\n"
        "except OSError as error: print(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert done.stdout.strip() == str(errno.EFBIG), done.stderr
    assert path.read_bytes() == whole


@pytest.mark.parametrize("part", ["save_weights", "save_tensors", "write_json", "seal"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    part: str, tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nanokimi.train import checkpoint

    state = begin(tiny_config(), tmp_path / "run")
    train_step(state)
    first = save_checkpoint(state)
    train_step(state)
    monkeypatch.setattr(checkpoint, part, full)
    with pytest.raises(OSError):
        save_checkpoint(state)
    assert [path.name for path in first.parent.iterdir()] == [first.name] and find_damage(first) is None


def test_a_report_that_cannot_be_written_costs_no_verdict_and_is_written_later(
    tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nanokimi.report import page

    settings, out = tmp_path / "settings.yaml", tmp_path / "run"
    save_config(tiny_config(max_steps=2), settings)
    with monkeypatch.context() as patched:
        patched.setattr(page, "write_atomic", full)
        assert cli.main(["compare", "--config", str(settings), "--arms", "NanoGPT", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    line = printed.err.splitlines()[-1]
    assert "No space left" in line and f"nanokimi report {out}" in line
    assert printed.out.startswith("NanoGPT ") and "nats per token of the test text" in printed.out
    assert not (out / "report.html").exists()
    assert cli.main(["report", str(out)]) == 0
    assert (out / "report.html").exists()


SMALL_DISK = """
import shutil, subprocess, sys
from pathlib import Path
from nanokimi import cli
from nanokimi.cli import verbs
from nanokimi.compare import arm_process

mount, settings, result = sys.argv[1:]
run, filler = Path(mount, "run"), Path(mount, "filler")


def mounted(*options):
    subprocess.run(["mount", *options, mount], check=True)


def train():
    return cli.main(["train", "--config", settings, "--resume", "--out", str(run)])


mounted("-t", "tmpfs", "-o", "size=2400k", "tmpfs")
filler.write_bytes(bytes(1_000_000))
assert train() == 1
print(*(path.name for path in (run / "checkpoints").iterdir()))
filler.unlink()
mounted("-o", "remount,ro")
assert train() != 0
mounted("-o", "remount,rw")
mounted("-o", "remount,size=40m")
assert train() == 0
shutil.copy(run / "model.safetensors", result)
"""


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True
    ).returncode,
    reason="a small file system of one's own needs unshare and its permission",
)
def test_on_a_real_small_disk_the_run_ends_with_a_line_and_goes_on_once_there_is_room(
    tiny_config: Build, tmp_path: Path
) -> None:
    config = small(tiny_config(max_steps=40, eval_every=20, save_every=2, keep_checkpoints=9))
    settings, mount, result = tmp_path / "settings.yaml", tmp_path / "mount", tmp_path / "result"
    save_config(config, settings)
    mount.mkdir()
    whole = begin(config, tmp_path / "whole")
    list(train(whole))
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", SMALL_DISK, str(mount), str(settings), str(result)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    complaints = [line for line in done.stderr.splitlines() if line.startswith("nanokimi: ")]
    assert "No space left on device" in complaints[0] and "nanokimi train --resume" in complaints[0]
    assert "Traceback" not in done.stderr
    assert "Read-only file system" in complaints[1]
    kept = done.stdout.splitlines()[0].split()
    assert [name for name in kept if name.startswith("step-")], "what was saved before is still there"
    assert not [name for name in kept if name.endswith(".tmp")], "and nothing half written"
    assert result.read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert whole.step == 40
