"""Where the milliseconds of a training step go, beside what the machine could do at best. Needs no text and no peer.

The step is the real `train_step`, on random tokens. Its parts are the stretches between marks that are set around the
functions it calls (batch, backward, optimizer, Newton-Schulz, QK-Clip), so they add up to the step exactly.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from nanokimi.config import RunConfig
from nanokimi.config.arms import arm_configs
from nanokimi.config.rules import resolve
from nanokimi.data.encoding import id_dtype
from nanokimi.data.store import PreparedData
from nanokimi.data.tokenizers.own import ByteTokenizer
from nanokimi.kernels import muon
from nanokimi.kernels.accelerate import why_no_c
from nanokimi.kernels.decode import decode_choice
from nanokimi.kernels.place import Place
from nanokimi.kernels.structs import Choice
from nanokimi.measure.cost import model_cost, optimizer_flops
from nanokimi.measure.speed import Timing, generation_latency, time_calls
from nanokimi.optim import qk_clip
from nanokimi.profiling.roofline import MachineRates, measure_machine
from nanokimi.runtime.device import choose_device, choose_dtype, choose_threads, fenced_seconds, synchronize
from nanokimi.runtime.gpu import describe_gpu
from nanokimi.train import step as step_module
from nanokimi.train.state import TrainState, build_state
from nanokimi.train.step import train_step
from nanokimi.train.torch_compile import compile_step

VOCABULARIES = {"char": 65, "byte": 256}  # 65: tinyshakespeare's
SYNTHETIC_TOKENS = 1_000_000
WARM_UP_STEPS = 3
SECONDS, QUICK_SECONDS = 12.0, 2.0  # of training, for each model
# Where Muon's step is taken in C, "newton_schulz" is all of it: momentum and the weights' update, too.
PARTS = ("data", "forward", "backward", "clip", "optimizer", "newton_schulz", "qk_clip", "rest")
ADAM_TRAFFIC, MUON_TRAFFIC = 7, 5  # numbers read and written for each parameter: weight, gradient, moments


@dataclass(frozen=True)
class StepParts:
    """Milliseconds of a step and of its parts: the mean over the half of the steps that are nearest the median."""

    step_ms: float
    parts_ms: dict[str, float]  # in the order of PARTS; "forward" includes the loss, "clip" is the gradient's
    steps: int
    first_step_ms: float  # buffers, kernels, compilation


@dataclass(frozen=True)
class ModelBench:
    """One model of a configuration."""

    name: str
    optimizer: str
    params_total: int
    params_active: int
    tokens_per_step: int
    parts: StepParts
    qk_logits_ms: float | None  # part of the forward: the logits once more, for QK-Clip; None if compiled
    roofline_ms: dict[str, float]  # of the step
    prefill: Timing
    decode: Timing
    kernels: list[Choice]  # which fast form each mechanism has, and why


@dataclass(frozen=True)
class Bench:
    """The machine and both models."""

    device: str
    gpu: dict[str, Any] | None  # as a run's environment has it
    dtype: str
    threads: int
    rates: MachineRates
    models: list[ModelBench]
    why_no_c: str  # what keeps the training kernels in C from being used; empty if nothing does


def run_bench(config: RunConfig, quick: bool = False) -> Bench:
    """Measure the machine and both models of a configuration; with `quick` in a few seconds each."""
    config = synthetic_config(config)
    torch.set_num_threads(config.train.threads or 1)
    device = torch.device(config.train.device)
    rates = measure_machine(device, 0.1 if quick else 0.5, config.train.dtype)
    seconds = QUICK_SECONDS if quick else SECONDS
    models = [bench_model(arm, rates, seconds) for arm in arm_configs(config).values()]
    train = config.train
    why = why_no_c(Place(device.type, train.dtype, train.compile))
    return Bench(str(device), describe_gpu(device), train.dtype, train.threads or 1, rates, models, why)


def bench_model(config: RunConfig, rates: MachineRates, seconds: float) -> ModelBench:
    """Measure the model that a synthetic configuration names."""
    state = synthetic_state(config)
    train = config.train
    cost = model_cost(config.family.model, train.context_length)
    if train.compile:
        compile_step(state)
    parts = time_parts(state, seconds)
    prefill, decode = generation_latency(state.model, train.context_length)
    return ModelBench(
        name=config.title,
        optimizer=config.family.optim.name,
        params_total=cost.params_total,
        params_active=cost.params_active,
        tokens_per_step=train.batch_size * train.context_length,
        parts=parts,
        qk_logits_ms=qk_logits_ms(state),
        roofline_ms=step_roofline(state, rates),
        prefill=prefill,
        decode=decode,
        kernels=[*state.kernels, decode_choice(state.model)[0]],
    )


def synthetic_config(config: RunConfig) -> RunConfig:
    """The configuration resolved for this machine, with a vocabulary of the size its tokenizer would have."""
    device = choose_device(config.train.device)
    vocab_size = VOCABULARIES.get(config.dataset.tokenizer, config.dataset.vocab_size)
    return resolve(
        config,
        vocab_size=vocab_size,
        device=str(device),
        dtype=choose_dtype(config.train.dtype, device),
        threads=choose_threads(config.train.threads),
    )


def synthetic_state(config: RunConfig) -> TrainState:
    """A fresh run of a resolved configuration on random tokens; it has no folder and writes nothing."""
    vocab_size = config.family.model.vocab_size
    assert vocab_size is not None, "resolve() fills this in"
    ids = synthetic_ids(vocab_size)
    data = PreparedData(ByteTokenizer(), ids, ids[: SYNTHETIC_TOKENS // 10], metadata={})
    return build_state(config, data, Path("no-folder"))


def synthetic_ids(vocab_size: int) -> np.ndarray:
    """Random tokens, always the same ones."""
    dtype = id_dtype(vocab_size)
    return np.random.default_rng(0).integers(0, vocab_size, SYNTHETIC_TOKENS).astype(dtype)


class Timers:
    """Seconds by name; each mark gives the time since the mark before to a name.

    On CUDA a mark is an event among the device's work, so that the step runs as it does in training: a fence at each
    mark would let the device run empty some 40 times a step. A part is then the device's time, idle or not, between the
    ends of what was launched before its two marks.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart()

    def restart(self) -> None:
        """Forget everything; the clock starts now, with the device idle."""
        synchronize(self.device)
        self.marks: list[tuple[str, Any]] = [("", self.now())]

    def mark(self, name: str) -> None:
        """What happened since the last mark was `name`."""
        self.marks.append((name, self.now()))

    def now(self) -> Any:
        """This moment: an event on CUDA, elsewhere a reading of the clock when the device is idle."""
        if self.device.type != "cuda":
            return fenced_seconds(self.device)
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by name since the clock started. Waits for the device."""
        if self.device.type == "cuda":
            synchronize(self.device)
        found: dict[str, float] = defaultdict(float)
        for (_, last), (name, now) in pairwise(self.marks):
            found[name] += last.elapsed_time(now) / 1e3 if self.device.type == "cuda" else now - last
        return found

    @contextmanager
    def around(self, module: ModuleType, function: str, before: str, name: str) -> Iterator[None]:
        """Mark around the calls of a module's function: until it begins it was `before`, within it `name`."""
        original: Callable[..., Any] = getattr(module, function)

        def marked(*args: Any, **kwargs: Any) -> Any:
            self.mark(before)
            result = original(*args, **kwargs)
            self.mark(name)
            return result

        setattr(module, function, marked)
        try:
            yield
        finally:
            setattr(module, function, original)


@contextmanager
def marks(state: TrainState) -> Iterator[Timers]:
    """Set the marks of `PARTS` around what `train_step` calls, and take them away again."""
    timers = Timers(state.device)
    with ExitStack() as stack:
        for handle in (
            state.optimizer.register_step_pre_hook(lambda *_: timers.mark("clip")),
            state.optimizer.register_step_post_hook(lambda *_: timers.mark("optimizer")),
        ):
            stack.callback(handle.remove)
        stack.enter_context(timers.around(step_module, "training_batch", "rest", "data"))
        stack.enter_context(timers.around(torch.autograd, "backward", "forward", "backward"))
        stack.enter_context(timers.around(muon, "newton_schulz", "optimizer", "newton_schulz"))
        stack.enter_context(timers.around(muon, "native_muon_step", "optimizer", "newton_schulz"))
        stack.enter_context(timers.around(qk_clip, "qk_clip_", "optimizer", "qk_clip"))
        yield timers


def time_parts(state: TrainState, seconds: float, at_least: int = 4) -> StepParts:
    """Train for about so long after a warm-up."""
    seconds_of_steps: list[dict[str, float]] = []
    with marks(state) as timers:
        spent = 0.0
        while len(seconds_of_steps) < WARM_UP_STEPS + at_least or spent < seconds:
            timers.restart()
            train_step(state)
            timers.mark("rest")
            seconds_of_steps.append(timers.seconds)
            spent += sum(seconds_of_steps[-1].values())
    first = sum(seconds_of_steps[0].values())
    steady = sorted(seconds_of_steps[WARM_UP_STEPS:], key=lambda parts: sum(parts.values()))
    quarter = len(steady) // 4
    kept = steady[quarter : len(steady) - quarter]
    means = {name: statistics.fmean(parts.get(name, 0.0) for parts in kept) * 1e3 for name in PARTS}
    return StepParts(sum(means.values()), means, len(steady), first * 1e3)


@torch.no_grad()
def qk_logits_ms(state: TrainState) -> float | None:
    """How much longer a forward pass takes that also finds each head's largest logit; None if it is compiled."""
    if state.compiled is not None:
        return None
    if not step_module.needs_logits(state.optimizer):
        return 0.0
    inputs_BT, _ = step_module.training_batch(state)
    x_BT = inputs_BT[: state.micro_batch_size]

    def forward(want_max_logits: bool) -> float:
        with step_module.autocast(state):
            call = partial(state.model, x_BT, want_max_logits=want_max_logits)
            return time_calls(call, state.device, repeats=5, warm_up=1).median_ms

    with_logits, without = zip(*((forward(True), forward(False)) for _ in range(3)), strict=True)
    return max(statistics.median(with_logits) - statistics.median(without), 0.0)


def step_roofline(state: TrainState, rates: MachineRates) -> dict[str, float]:
    """Milliseconds that a step cannot be below on this machine: products at the full rate, weights at full bandwidth.

    "model": forward and backward in the run's dtype; "newton_schulz": in its dtype; "qk_clip": the logits once more, in
    fp32; "weights": the optimizer reads and writes every weight, gradient and moment once. Nothing else is counted, and
    no two of them are taken to overlap.
    """
    config = state.config
    train, optim, model = config.train, config.family.optim, config.family.model
    shapes = {name: tuple(p.shape) for name, p in state.model.named_parameters()}
    plain = optim.name in ("muon", "muonclip", "truemuon")
    matrices = replace(optim, name=optim.name.removesuffix("clip") if optim.clips else optim.name)
    muon_flops = optimizer_flops(shapes, matrices, model, train)
    flops = rates.flops_per_second
    automatic = optim.ns_dtype == "auto"
    ns_rate = rates.newton_schulz_flops_per_second if automatic else flops.get(optim.ns_dtype, flops["fp32"])
    numbers = sum(p.numel() for p in state.model.parameters())
    traffic = 4 * numbers * (MUON_TRAFFIC if plain else ADAM_TRAFFIC)
    tokens = train.batch_size * train.context_length
    return {
        "model": tokens * state.flops_per_token / flops.get(train.dtype, flops["fp32"]) * 1e3,
        "newton_schulz": muon_flops / ns_rate * 1e3,
        "qk_clip": (state.flops_per_step - muon_flops) / flops["fp32"] * 1e3,
        "weights": traffic / rates.read_bytes_per_second * 1e3,
    }
