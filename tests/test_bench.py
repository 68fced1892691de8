"""`nanokimi bench`: its parts are those of the real step and add up to it; nothing here depends on how fast it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanokimi import cli
from nanokimi.config import OptimConfig, RunConfig
from nanokimi.config.files import save_config
from nanokimi.kernels import muon
from nanokimi.measure.cost import model_cost
from nanokimi.optim import qk_clip
from nanokimi.profiling import bench
from nanokimi.profiling import roofline as machine
from nanokimi.profiling.bench import (
    PARTS,
    marks,
    run_bench,
    step_roofline,
    synthetic_config,
    synthetic_state,
    time_parts,
)
from nanokimi.profiling.roofline import MachineRates, batched_matmul_rate, fastest_seconds, measure_machine
from nanokimi.train import step as step_module
from nanokimi.train.step import train_step

CPU = torch.device("cpu")
RATES = MachineRates({"fp32": 1e9, "bf16": 4e9}, 1e8)
Build = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SECONDS", "QUICK_SECONDS"):
        monkeypatch.setattr(bench, name, 0.0)
    monkeypatch.setattr(machine, "SMALL_SIZE", 64)
    monkeypatch.setattr(machine, "MEMORY_BYTES", 1_000_000)


@pytest.mark.parametrize("model", ["nanokimi", "nanogpt"])
def test_the_parts_add_up_to_the_step_that_train_step_itself_times(model: str, tiny_config: Build) -> None:
    """Whatever lies outside train_step's own clock is in "rest", and every other part inside it."""
    state = synthetic_state(synthetic_config(replace(tiny_config(micro_batch_size=4), model=model)))  # type: ignore[arg-type]
    with marks(state) as timers:
        for _ in range(3):
            timers.restart()
            record = train_step(state)
            timers.mark("rest")
            parts = dict(timers.seconds)
            outside = sum(parts.values()) - record["step_ms"] / 1e3
            assert 0 <= outside <= parts["rest"]
            assert set(parts) <= set(PARTS)
            inside = {"data", "forward", "backward", "clip", "optimizer"}
            assert all(parts[name] > 0 for name in inside)
            with_muon = {"newton_schulz", "qk_clip"}
            assert all((parts.get(name, 0) > 0) == (model == "nanokimi") for name in with_muon)


def test_each_part_is_what_its_name_says(tiny_config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only moves within one function at a time, by another amount in each."""
    state = synthetic_state(synthetic_config(tiny_config(micro_batch_size=4)))  # two passes
    clock, calls = [0.0], [0]
    monkeypatch.setattr(bench, "fenced_seconds", lambda device: clock[0])

    def slow(owner: object, name: str, seconds: float, counted: bool = False) -> None:
        original = getattr(owner, name)

        def slower(*args: object, **kwargs: object) -> object:
            clock[0] += seconds
            calls[0] += counted
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, slower)

    slow(step_module, "training_batch", 1)
    slow(state, "loss", 2)
    slow(torch.autograd, "backward", 30)
    slow(torch.nn.utils, "get_total_norm", 400)
    slow(muon, "newton_schulz", 5000, counted=True)
    slow(muon, "muon_directions", 60_000, counted=True)
    slow(qk_clip, "qk_clip_", 700_000)
    slow(step_module, "balance_experts_", 8_000_000)
    with marks(state) as timers:
        timers.restart()
        train_step(state)
        timers.mark("rest")
    groups = sum(g["algorithm"] == "muon" for g in state.optimizer.param_groups)
    assert dict(timers.seconds) == {
        **{
            "data": 1,
            "forward": 2 * 2,
            "backward": 2 * 30,
            "clip": 400,
            "qk_clip": 700_000,
            "rest": 8_000_000,
        },
        "newton_schulz": 5000 * (calls[0] - groups),
        "optimizer": 60_000 * groups,
    }


def test_marks_change_nothing_and_are_taken_away(tiny_config: Build) -> None:
    config = synthetic_config(tiny_config())
    functions = step_module.training_batch, torch.autograd.backward, muon.newton_schulz, qk_clip.qk_clip_
    plain, marked = synthetic_state(config), synthetic_state(config)
    losses = [train_step(plain)["loss"] for _ in range(3)]
    with marks(marked):
        assert [train_step(marked)["loss"] for _ in range(3)] == losses
    now = step_module.training_batch, torch.autograd.backward, muon.newton_schulz, qk_clip.qk_clip_
    assert now == functions
    assert not marked.optimizer._optimizer_step_pre_hooks and not marked.optimizer._optimizer_step_post_hooks


def test_marks_are_taken_away_when_a_step_fails(tiny_config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    state = synthetic_state(synthetic_config(tiny_config()))

    def broken(**_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(state.optimizer, "step", broken)
    functions = step_module.training_batch, muon.newton_schulz
    with pytest.raises(RuntimeError, match="broken"):
        time_parts(state, 0.0)
    assert (step_module.training_batch, muon.newton_schulz) == functions
    assert not state.optimizer._optimizer_step_pre_hooks


def test_the_step_is_the_mean_of_its_middle_half(tiny_config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    state = synthetic_state(synthetic_config(tiny_config()))
    # Three warm up; of the rest 2 and 4 count.
    seconds: Iterator[float] = iter([9.0, 9.0, 9.0, 4.0, 1.0, 100.0, 2.0])
    clock = [0.0]
    monkeypatch.setattr(bench, "fenced_seconds", lambda device: clock[0])

    def step(state: object) -> None:
        clock[0] += next(seconds)

    monkeypatch.setattr(bench, "train_step", step)
    found = time_parts(state, 0.0)
    assert (found.step_ms, found.steps, found.first_step_ms) == (3000.0, 4, 9000.0)
    assert found.parts_ms["rest"] == 3000.0 and sum(found.parts_ms.values()) == found.step_ms


def test_the_roofline_by_hand(tiny_config: Build) -> None:
    config = replace(synthetic_config(tiny_config()), model="nanogpt")
    state, train = synthetic_state(config), config.train
    tokens = train.batch_size * train.context_length
    flops = tokens * model_cost(config.nanogpt.model, train.context_length).train_flops_per_token
    numbers = sum(p.numel() for p in state.model.parameters())
    roofline = step_roofline(state, RATES)
    assert roofline["model"] == pytest.approx(flops / 1e9 * 1e3)
    assert roofline["weights"] == pytest.approx(7 * 4 * numbers / 1e8 * 1e3)
    assert roofline["newton_schulz"] == roofline["qk_clip"] == 0

    optim = OptimConfig(name="muonclip", ns_steps=2)
    clipped = replace(config, nanogpt=replace(config.nanogpt, optim=optim))
    roofline = step_roofline(synthetic_state(clipped), RATES)
    d, layers = 32, 2
    sizes = [(d, d)] * 4 + [(d, 4 * d)] * 2  # q, k, v and output; both of the MLP's
    products = layers * sum(2 * (4 * m * m * n + 2 * m**3) for m, n in sizes)
    assert roofline["newton_schulz"] == pytest.approx(products / 4e9 * 1e3)  # in the faster dtype
    assert roofline["qk_clip"] == pytest.approx(2 * layers * d * 8 * 16**2 / 1e9 * 1e3)
    in_fp32 = replace(clipped, train=replace(train, dtype="fp32"))
    assert step_roofline(synthetic_state(in_fp32), RATES) == roofline


def test_the_verb(tiny_config: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_config(tiny_config(), tmp_path / "tiny.yaml")
    arguments = ["bench", "--quick", "--config", str(tmp_path / "tiny.yaml")]
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in found["models"]] == ["NanoKimi", "NanoGPT"]
    for model in found["models"]:
        assert list(model["parts"]["parts_ms"]) == list(PARTS)
        assert sum(model["parts"]["parts_ms"].values()) == pytest.approx(model["parts"]["step_ms"])
        assert model["tokens_per_step"] == 8 * 16 and model["parts"]["steps"] >= 4
        assert model["decode"]["median_ms"] > 0 and min(model["roofline_ms"].values()) >= 0
    assert all(rate > 0 for rate in found["rates"]["flops_per_second"].values())
    assert cli.main(arguments) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in ("Newton-Schulz", "QK-Clip", "GFLOP/s", "decode", "roofline"))
    assert not (tmp_path / "no-folder").exists() and not Path("no-folder").exists()


def test_the_default_configuration_needs_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RunConfig] = []
    monkeypatch.setattr(bench, "bench_model", lambda config, rates, seconds: seen.append(config))
    from nanokimi.config.files import load_config

    run_bench(load_config("shakespeare-char", ["--train.device", "cpu", "--train.threads", "1"]))
    assert [config.model for config in seen] == ["nanokimi", "nanogpt", "nanogpt"]
    assert seen[0].nanokimi.model.vocab_size == 65


def test_wrong_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--quik"]) == 2
    assert cli.main(["bench", "--config", "nowhere"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_rates() -> None:
    found = measure_machine(CPU, seconds=0.01)
    assert set(found.flops_per_second) == set(machine.native_dtypes(CPU)) and "fp32" in found.flops_per_second
    assert found.newton_schulz_flops_per_second == max(found.flops_per_second.values()) > 0
    assert found.read_bytes_per_second > 0
    assert batched_matmul_rate((3, 8, 16, 4), torch.float32, CPU, seconds=0.01) > 0


def test_the_fastest_call_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = iter([9.0, 3.0, 2.0, 5.0])  # the first warms up
    clock = [0.0]
    monkeypatch.setattr(machine, "fenced_seconds", lambda device: clock[0])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: clock[0])

    def call() -> None:
        clock[0] += next(durations)

    assert fastest_seconds(call, CPU, seconds=6.0) == 2.0
