"""What is said of a GPU, and how it is measured: on a CUDA device of which only properties, events and fences exist."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nanokimi.cli.bench_table import machine_text
from nanokimi.cli.forecast_table import forecast_text, memory_of
from nanokimi.config import RunConfig
from nanokimi.errors import UserError
from nanokimi.profiling import roofline as machine
from nanokimi.profiling.bench import (
    WARM_UP_STEPS,
    Bench,
    Timers,
    marks,
    step_roofline,
    synthetic_config,
    synthetic_state,
    time_parts,
)
from nanokimi.profiling.forecast import forecast
from nanokimi.profiling.roofline import MachineRates, bytes_to_read, measure_machine, native_dtypes
from nanokimi.report import units
from nanokimi.runtime.device import choose_dtype
from nanokimi.runtime.files import describe_environment
from nanokimi.runtime.gpu import describe_gpu
from nanokimi.train.run_folder import keep_environment

CUDA = torch.device("cuda", 0)


class Clock:
    """Counts fences and events; an event is a millisecond after the one before."""

    def __init__(self) -> None:
        self.fences = self.events = 0

    def synchronize(self, device: torch.device | None = None) -> None:
        self.fences += 1

    def make_event(self, enable_timing: bool) -> Any:
        assert enable_timing
        self.events += 1
        return Event(self.events)


class Event:
    def __init__(self, at_ms: float) -> None:
        self.at_ms = at_ms

    def record(self, stream: object) -> None:
        pass

    def elapsed_time(self, later: Event) -> float:
        return later.at_ms - self.at_ms


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A T4, as far as torch.cuda tells."""
    clock = Clock()
    t4 = SimpleNamespace(name="Tesla T4", total_memory=15_800_000_000, major=7, minor=5)
    for name, value in {
        "get_device_properties": lambda device: t4,
        "get_device_capability": lambda device: (t4.major, t4.minor),
        "get_device_name": lambda device: t4.name,
        "mem_get_info": lambda device: (2_000_000_000, t4.total_memory),
        "synchronize": clock.synchronize,
        "current_stream": lambda device: None,
        "Event": clock.make_event,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    monkeypatch.setattr("nanokimi.runtime.gpu._nvidia_driver", lambda: "580.159.03")
    return clock


def test_the_environment_names_gpu_driver_and_cudnn(gpu: Clock, tmp_path: Path) -> None:
    keep_environment(tmp_path, "cuda:0")
    found = units_of(tmp_path)
    assert found["name"] == "Tesla T4" and found["compute_capability"] == "7.5"
    assert found["driver"] == "580.159.03" and found["cudnn"] == 91900
    assert units.gpu(found) == "Tesla T4, 16 GB, driver 580.159.03, cuDNN 9.19.0"
    assert describe_environment()["gpu"] is None and describe_gpu(torch.device("cpu")) is None


def units_of(folder: Path) -> dict[str, Any]:
    from nanokimi.runtime.files import read_json

    return read_json(folder / "environment.json")["gpu"]


def test_what_is_unknown_of_a_gpu_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """On MPS, and where the driver's library is missing or another of its name."""
    monkeypatch.setattr(torch.backends.mps, "get_name", lambda: "Apple M4")
    found = describe_gpu(torch.device("mps"))
    assert found is not None and units.gpu(found) == "Apple M4"
    assert units.cudnn(8902) == "8.9.2" and units.gpu(None) == units.MISSING
    from nanokimi.runtime import gpu as module

    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: object())
    assert module._nvidia_driver() is None


def test_bf16_that_a_gpu_only_emulates_is_refused(gpu: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"Tesla T4 only emulates it .*7\.5; bf16 needs 8\.0.*fp16 or fp32"):
        choose_dtype("bf16", CUDA)
    assert (choose_dtype("auto", CUDA), choose_dtype("fp16", CUDA)) == ("fp32", "fp16")
    assert native_dtypes(CUDA) == ["fp32", "fp16"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert (choose_dtype("auto", CUDA), choose_dtype("bf16", CUDA)) == ("bf16", "bf16")
    assert native_dtypes(CUDA) == ["fp32", "bf16", "fp16"]


def test_bandwidth_is_measured_with_much_memory_but_not_all(
    gpu: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bytes_to_read(CUDA) == 500_000_000, "a quarter of what is free"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (140_000_000_000, 141_000_000_000))
    assert bytes_to_read(CUDA) == 4_000_000_000


def test_a_precision_has_its_own_rate(
    tiny_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16 once had fp32's; Muon chooses bf16 or fp32, however fast fp16 is."""
    monkeypatch.setattr(machine, "SMALL_SIZE", 16)
    monkeypatch.setattr(machine, "MEMORY_BYTES", 100_000)
    assert measure_machine(torch.device("cpu"), 0.0, "fp16").flops_per_second["fp16"] > 0
    rates = MachineRates({"fp32": 1e9, "bf16": 4e9, "fp16": 8e9}, 1e8)
    config = synthetic_config(tiny_config())
    fp32, fp16 = (
        step_roofline(synthetic_state(replace(config, train=replace(config.train, dtype=dtype))), rates)
        for dtype in ("fp32", "fp16")
    )
    assert fp16["model"] == pytest.approx(fp32["model"] / 8)
    assert fp16["newton_schulz"] == fp32["newton_schulz"] > 0


def test_a_step_on_cuda_is_timed_with_two_fences(tiny_config: Callable[..., RunConfig], gpu: Clock) -> None:
    """There were 46: one at each mark, where the device ran empty."""
    state = synthetic_state(synthetic_config(tiny_config(micro_batch_size=4)))
    with marks(state) as timers:
        timers.device = CUDA
        timers.restart()
        gpu.fences = gpu.events = 0
        for name in ("data", "forward", "data"):
            timers.mark(name)
        assert gpu.fences == 0 and gpu.events == 3
        assert set(timers.seconds) == {"data", "forward"} and gpu.fences == 1
    steps = WARM_UP_STEPS + 4
    gpu.fences = 0
    state.device, device = CUDA, state.device
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("nanokimi.profiling.bench.train_step", lambda state: None)
            found = time_parts(state, 0.0)
    finally:
        state.device = device
    assert gpu.fences == 2 * steps + 1, "before and after each step, and when the clock was made"
    assert found.step_ms == pytest.approx(found.parts_ms["rest"]) and found.steps == 4


def test_parts_on_cuda_add_up_to_the_time_between_the_first_event_and_the_last(gpu: Clock) -> None:
    timers = Timers(CUDA)
    for name in ("a", "b", "a"):
        timers.mark(name)
    assert timers.seconds == {"a": pytest.approx(0.002), "b": pytest.approx(0.001)}
    timers.restart()
    assert timers.seconds == {}


def test_tables_name_the_gpu_and_whose_memory_is_meant(
    gpu: Clock, tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    found = forecast(tiny_config(max_steps=2), tmp_path / "out", apart=False)
    assert "all of the process" in forecast_text(found) and found.gpu is None
    on_gpu = replace(found.config, train=replace(found.config.train, device="cuda:0"))
    text = forecast_text(replace(found, config=on_gpu, gpu=describe_gpu(CUDA)))
    assert "cuda:0 (Tesla T4, 16 GB, driver 580.159.03" in text
    assert "all of the process" not in text and "torch's own on the GPU" in text
    assert "MPS" in memory_of("mps")
    rates = MachineRates({"fp32": 1e12, "fp16": 6e13}, 3e11)
    head = machine_text(Bench("cuda:0", describe_gpu(CUDA), "fp16", 2, rates, [], ""))
    assert head.startswith("cuda:0 (Tesla T4, 16 GB") and "60,000 in fp16" in head
