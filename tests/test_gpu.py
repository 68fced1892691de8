"""What only a GPU can show. Run with `make test-gpu`, or as the first part of `make gpu-day`, which keeps what is
measured (`record_property`). Skipped, with the reason, where there is no CUDA device.

On the pretend device (pretend_device/) most of these tests run, too, and show that they would; the numbers are a CPU's.
"""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import TINY_GPT, TINY_KIMI

from nanokimi.config import GPTConfig, KimiConfig, OptimConfig, RunConfig
from nanokimi.data.store import open_prepared
from nanokimi.errors import TrainingError
from nanokimi.kernels.accelerate import accelerate_
from nanokimi.measure.audit import audit
from nanokimi.model.build import build_model
from nanokimi.model.moe import Experts, count_experts, mix_experts
from nanokimi.model.sdpa import attend
from nanokimi.optim.muon import newton_schulz
from nanokimi.runtime.device import DTYPES, choose_dtype
from nanokimi.train import recovery
from nanokimi.train.checkpoint import load_newest_checkpoint
from nanokimi.train.loop import train
from nanokimi.train.run import train_alone
from nanokimi.train.run_folder import find_data, open_run
from nanokimi.train.state import TrainState, build_state

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]
MODELS: list[KimiConfig | GPTConfig] = [TINY_KIMI, TINY_GPT]
NAMES = ["nanokimi", "nanogpt"]
CUDA = torch.device("cuda", 0)
PRETEND = bool(os.environ.get("PRETEND_DEVICE"))
real = pytest.mark.skipif(PRETEND, reason="the pretend device cannot show it")
Build = Callable[..., RunConfig]
Record = Callable[[str, object], None]


@pytest.fixture(autouse=True)
def memory_for_all() -> Iterator[None]:
    """No limit of one test is left for the next one, nor what it kept."""
    yield
    if not PRETEND:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def needs(dtype: str) -> None:
    """Skip a test in a precision that this GPU only emulates."""
    if dtype == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bf16")


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference over that of what is expected, in float64 on the CPU."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("config", MODELS, ids=["nanokimi", "nanogpt"])
def test_cuda_computes_what_the_cpu_computes(config: KimiConfig | GPTConfig) -> None:
    model = build_model(config, seed=0)
    ids = torch.randint(61, (3, 32), generator=torch.Generator().manual_seed(0))
    on_cpu = model(ids, want_max_logits=True)
    on_gpu = model.cuda()(ids.cuda(), want_max_logits=True)
    torch.testing.assert_close(on_gpu.logits_BTW.cpu(), on_cpu.logits_BTW, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(on_gpu.max_logits_LH.cpu(), on_cpu.max_logits_LH, rtol=1e-3, atol=1e-4)


def test_newton_schulz_in_bf16_has_the_spectrum_of_fp32() -> None:
    matrices = torch.randn(4, 64, 96, device="cuda")
    values = torch.linalg.svdvals(newton_schulz(matrices, dtype=torch.bfloat16).float())
    assert 0.4 < values.min() and values.max() < 1.3


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_on_the_gpu_learns_and_is_causal(
    name: str, dtype: str, tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    needs(dtype)
    config = replace(tiny_config(device="cuda", dtype=dtype, max_steps=40, eval_every=40), model=name)  # type: ignore[arg-type]
    result = train_alone(config, tmp_path / "run")
    assert result["val_loss"] < 2.9 and result["audit"]["causal"]
    assert result["peak_memory_bytes"] > 0


def test_a_run_resumes_on_the_gpu(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """AdamW's step counts come back from the checkpoint on the CPU and must follow their parameters."""
    config = tiny_config(device="cuda", max_steps=6, save_every=3)
    train_alone(config, tmp_path / "run")
    whole = open_run(tmp_path / "run", device="cpu")
    (tmp_path / "run" / "model.safetensors").unlink()
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    newest.rename(tmp_path / "away")
    state = build_state(whole.config, open_prepared(find_data(tmp_path / "run")), tmp_path / "run")
    assert load_newest_checkpoint(state) and state.step == 3
    list(train(state))
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(state.model.state_dict()[name].cpu(), value, rtol=1e-3, atol=1e-4)


def test_the_audit_catches_a_leak_on_the_gpu() -> None:
    class Averaging(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(16, 16)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.embedding(ids)
            return x + x.mean(dim=1, keepdim=True)

    assert not audit(Averaging().cuda(), vocab_size=16, context=8).causal


# ---- numbers


def ways(tokens: int, experts: int) -> dict[str, torch.Tensor]:
    """Choices (M, 2) of experts: even, skewed so that most tokens go to one, and with half of the experts empty."""
    generator = torch.Generator().manual_seed(0)
    even = torch.stack([torch.randperm(experts, generator=generator)[:2] for _ in range(tokens)])
    skewed = even.clone()
    skewed[: tokens * 9 // 10] = torch.tensor([0, 1])
    return {"even": even, "skewed": skewed, "half empty": even % (experts // 2)}


def mixed(
    mix: Callable[..., torch.Tensor], experts: Experts, inputs: tuple[torch.Tensor, ...], dtype: torch.dtype
) -> list[torch.Tensor]:
    """The experts' output, and the gradients of tokens, gates and matrices."""
    chosen_MK, x_MD, gates_MK, weight_MD = inputs
    x_MD, gates_MK = x_MD.clone().requires_grad_(), gates_MK.clone().requires_grad_()
    matrices = (experts.gate_proj, experts.up_proj, experts.down_proj)
    counts_E = count_experts(chosen_MK.view(1, -1), len(experts.gate_proj))[0]
    lower = dtype in (torch.bfloat16, torch.float16)
    with torch.autocast(x_MD.device.type, dtype=dtype if lower else torch.bfloat16, enabled=lower):
        out_MD = mix(x_MD, chosen_MK, gates_MK, counts_E, matrices)
    return [out_MD, *torch.autograd.grad((out_MD * weight_MD).sum(), (x_MD, gates_MK, *matrices))]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("way", ["even", "skewed", "half empty"])
def test_experts_are_those_of_a_loop_in_float64(way: str, dtype: str, record_property: Record) -> None:
    """Forward and backward, also where an expert has no token or most of them."""
    needs(dtype)
    tokens, width = 500, 128
    config = replace(TINY_KIMI, hidden_size=width, moe_intermediate_size=64, n_routed_experts=8)
    generator = torch.Generator().manual_seed(1)
    experts = Experts(config)
    for p in experts.parameters():
        torch.nn.init.normal_(p, std=width**-0.5, generator=generator)
    inputs = (
        torch.randn(tokens, width, generator=generator),
        torch.rand(tokens, 2, generator=generator),
        torch.randn(tokens, width, generator=generator),
    )
    chosen_MK = ways(tokens, 8)[way]
    exact = mixed(mix_experts, experts.double(), (chosen_MK, *(x.double() for x in inputs)), torch.float64)
    on_gpu = experts.float().to(CUDA)
    record_property("form", [choice.form for choice in accelerate_(on_gpu, dtype=dtype)])
    found = mixed(on_gpu.mix, on_gpu, tuple(x.to(CUDA) for x in (chosen_MK, *inputs)), DTYPES[dtype])
    off = [far(a, b) for a, b in zip(found, exact, strict=True)]
    record_property("relative_errors", off)
    assert max(off) < {"fp32": 2e-5, "bf16": 3e-2, "fp16": 5e-3}[dtype]


@pytest.mark.parametrize("value_width", [64, 48], ids=["equal widths", "narrower values"])
def test_a_fused_kernel_computes_attention(value_width: int, record_property: Record) -> None:
    """Which one, and that it computes softmax(q k^T) v; math, which keeps all T x T logits, would be a surprise."""
    dtype = DTYPES[choose_dtype("auto", CUDA)]
    shapes = ((2, 4, 128, 64), (2, 4, 128, 64), (2, 4, 128, value_width))
    q, k, v = (torch.randn(s, generator=torch.Generator().manual_seed(i)) for i, s in enumerate(shapes))
    scores = (q.double() @ k.double().mT / 8).masked_fill(torch.ones(128, 128).triu(1).bool(), -torch.inf)
    here = [x.to(CUDA, dtype) for x in (q, k, v)]
    if PRETEND:
        from pretend_device.counts import COUNTS

        COUNTS.reset()
        out, _ = attend(*here, 1 / 8)
        names = list(COUNTS.attention)
    else:
        attend(*here, 1 / 8)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
            out, _ = attend(*here, 1 / 8)
            torch.cuda.synchronize()
        names = [e.key for e in sorted(profiled.key_averages(), key=lambda e: -e.device_time_total)][:3]
    record_property("kernels", names)
    error = far(out, scores.softmax(-1) @ v.double())
    record_property("relative_error", error)
    assert error < 2e-2
    fused = ("flash", "fmha", "cudnn", "efficient", "mha")
    seen = dtype != torch.float32 and names  # some machines do not let a profiler see kernels
    assert not seen or any(word in name.lower() for word in fused for name in names)


def loss_of(model: torch.nn.Module, ids: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """The mean loss of the next token, with products in `dtype` (None: those of the weights)."""
    with torch.autocast(ids.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        logits_BTW = model(ids).logits_BTW
    at = logits_BTW if logits_BTW.dtype == torch.float64 else logits_BTW.float()
    return torch.nn.functional.cross_entropy(at[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize("config", MODELS, ids=NAMES)
def test_logits_are_near_those_of_float64(config: KimiConfig | GPTConfig, record_property: Record) -> None:
    ids = torch.randint(61, (3, 32), generator=torch.Generator().manual_seed(0))
    exact = build_model(config, seed=0).double()(ids).logits_BTW
    model = build_model(config, seed=0).to(CUDA)
    accelerate_(model, dtype="fp32")
    error = far(model(ids.to(CUDA)).logits_BTW, exact)
    record_property("relative_error", error)
    assert error < 1e-5


@pytest.mark.parametrize("config", MODELS, ids=NAMES)
def test_gradients_in_bf16_are_as_good_as_the_cpus(
    config: KimiConfig | GPTConfig, record_property: Record
) -> None:
    """Both against float64. A token that chooses another expert is part of the error of both."""
    needs("bf16")
    ids = torch.randint(61, (8, 32), generator=torch.Generator().manual_seed(0))

    def gradient(device: torch.device, dtype: torch.dtype | None) -> torch.Tensor:
        model = build_model(config, seed=0)
        model = model.double() if dtype is None else model.to(device)
        if dtype is not None and device.type == "cuda":
            accelerate_(model, dtype="bf16")
        loss_of(model, ids.to(device), dtype).backward()
        found = [p.grad.flatten().cpu().double() for p in model.parameters() if p.grad is not None]
        return torch.cat(found)

    exact = gradient(torch.device("cpu"), None)
    of_cpu = far(gradient(torch.device("cpu"), torch.bfloat16), exact)
    of_gpu = far(gradient(CUDA, torch.bfloat16), exact)
    record_property("relative_errors", {"cpu": of_cpu, "gpu": of_gpu})
    assert of_gpu < 2 * of_cpu + 0.01


OPTIMIZERS = ["adamw", "muon", "muonclip", "truemuon", "lion", "shampoo", "shampooclip", "soap"]
LIBRARIES = ["torch:Adafactor", "torch:NAdam", "pytorch-optimizer:AdEMAMix"]


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, *LIBRARIES])
def test_every_optimizer_does_on_the_gpu_what_it_does_on_the_cpu(
    optimizer: str, tiny_config: Build, tmp_path: Path, record_property: Record
) -> None:
    if optimizer.startswith("pytorch-optimizer") and importlib.util.find_spec("pytorch_optimizer") is None:
        pytest.skip("pytorch-optimizer is not installed")
    losses = {}
    for device in ("cpu", "cuda"):
        state = started(with_optimizer(tiny_config(device=device, max_steps=3), optimizer), tmp_path / device)
        losses[device] = [record["loss"] for record in train(state) if record["kind"] == "train"]
    record_property("losses", losses)
    assert len(losses["cuda"]) == 3 and losses["cuda"] == pytest.approx(losses["cpu"], rel=2e-3)


def with_optimizer(config: RunConfig, name: str) -> RunConfig:
    """NanoKimi's arm with another optimizer, at a rate that suits all."""
    optim = OptimConfig(name=name, lr=1e-3, warmup_steps=2)
    return replace(config, nanokimi=replace(config.nanokimi, optim=optim))


def started(config: RunConfig, folder: Path) -> TrainState:
    """A run in a folder of its own before its first step."""
    from nanokimi.train.run_folder import set_up

    folder.mkdir(parents=True, exist_ok=True)
    config, data = set_up(config, folder)
    return build_state(config, data, folder)


# ---- checkpoints and memory


@pytest.mark.parametrize("name", NAMES)
def test_a_run_moves_from_the_gpu_to_the_cpu_and_back(
    name: str, tiny_config: Build, tmp_path: Path, record_property: Record
) -> None:
    """Steps 1 to 3 on the GPU, 4 to 6 on the CPU, 7 to 9 on the GPU, against all nine on the CPU.

    Newton-Schulz rounds to bf16 on some processors and not on others, so Muon's weights differ by that.
    """
    config = replace(tiny_config(device="cpu", max_steps=9, save_every=3), model=name)  # type: ignore[arg-type]
    whole = started(config, tmp_path / "whole")
    list(train(whole))
    folder = tmp_path / "moved"
    for device, until in (("cuda:0", 3), ("cpu", 6), ("cuda:0", 9)):
        state = started(replace(config, train=replace(config.train, device=device)), folder)
        assert load_newest_checkpoint(state, allow_changes=True) == (until > 3)
        assert state.step == until - 3
        for record in train(state):
            state.stop_requested = record.get("step", 0) >= until
        assert state.step == until
    moved = [p.detach().cpu().flatten() for p in state.model.parameters()]
    error = far(torch.cat(moved), torch.cat([p.detach().flatten() for p in whole.model.parameters()]))
    record_property("relative_error", error)
    assert error < 1e-2


def limit_bytes(wanted: float) -> None:
    """Let torch hold no more than so many bytes of the GPU."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction(wanted / total)


def large(config: RunConfig, hidden_size: int) -> RunConfig:
    """NanoGPT, this wide, without dropout."""
    model = replace(config.nanogpt.model, hidden_size=hidden_size, intermediate_size=None, dropout=0.0)
    return replace(config, model="nanogpt", nanogpt=replace(config.nanogpt, model=model))


@real
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_memory_that_runs_out_in_the_passes_halves_the_micro_batch(
    dtype: str, tiny_config: Build, tmp_path: Path, record_property: Record
) -> None:
    config = large(tiny_config(device="cuda", dtype=dtype, max_steps=2, batch_size=2560), 128)
    free = started(config, tmp_path / "free")
    torch.cuda.reset_peak_memory_stats()
    losses = [record["loss"] for record in train(free) if record["kind"] == "train"]
    peak = torch.cuda.max_memory_reserved()
    del free
    limited = started(config, tmp_path / "limited")
    limit_bytes(0.5 * peak)
    records = list(train(limited))
    assert limited.micro_batch_size < config.train.batch_size
    assert [record for record in records if record.get("event") == "out_of_memory"]
    again = [record["loss"] for record in records if record["kind"] == "train"]
    record_property("micro_batch_size", limited.micro_batch_size)
    record_property("losses", [losses, again])
    assert again == pytest.approx(losses, rel=1e-3)


@real
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_memory_that_runs_out_in_the_update_takes_the_run_back_and_on(
    dtype: str, tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    """The first update allocates AdamW's moments. The limit lies between what is held before it and after it."""
    config = large(tiny_config(device="cuda", dtype=dtype, max_steps=3), 1024)
    held: dict[str, int] = {}

    def note(
        name: str, *_: object
    ) -> None:  # a hook that returns something would change the step's arguments
        held.setdefault(name, torch.cuda.max_memory_reserved())

    free = started(config, tmp_path / "free")
    free.optimizer.register_step_pre_hook(partial(note, "before"))
    free.optimizer.register_step_post_hook(partial(note, "after"))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    losses = [record["loss"] for record in train(free) if record["kind"] == "train"]
    del free
    record_property("bytes", held)
    limited = started(config, tmp_path / "limited")
    limit_bytes((held["before"] + held["after"]) / 2)
    released = recovery.release_memory

    def make_room(device: torch.device) -> None:
        released(device)
        torch.cuda.set_per_process_memory_fraction(1.0)

    monkeypatch.setattr(recovery, "release_memory", make_room)
    records = list(train(limited))
    events = [record["detail"] for record in records if record.get("event") == "out_of_memory"]
    record_property("events", events)
    assert len(events) == 1 and "the update was half done" in events[0]
    again = [record["loss"] for record in records if record["kind"] == "train"]
    assert again[-1] == pytest.approx(losses[-1], rel=1e-3)


@real
def test_too_little_memory_for_anything_is_one_line(tiny_config: Build, tmp_path: Path) -> None:
    state = started(large(tiny_config(device="cuda", max_steps=2), 1024), tmp_path / "run")
    state.evaluated = True  # the validation before the first step would be the first to find no room
    limit_bytes(1.05 * torch.cuda.memory_reserved())
    with pytest.raises(TrainingError, match="out of memory at step 1 with one sequence") as caught:
        list(train(state))
    assert "\n" not in str(caught.value)


# ---- last, since it takes longest


@real
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_compiled_steps_compute_what_plain_ones_do(
    name: str, dtype: str, tiny_config: Build, tmp_path: Path, record_property: Record
) -> None:
    needs(dtype)
    losses = {}
    for compiled in (False, True):
        settings = dict(device="cuda", dtype=dtype, max_steps=8, eval_every=8, compile=compiled)
        config = replace(tiny_config(**settings), model=name)  # type: ignore[arg-type]
        losses[compiled] = train_alone(config, tmp_path / f"compiled-{compiled}")["val_loss"]
    record_property("val_losses", list(losses.values()))
    assert losses[True] == pytest.approx(losses[False], abs=1e-3 if dtype == "fp32" else 3e-2)
