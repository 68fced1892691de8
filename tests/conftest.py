"""Tiny configurations and data that the tests share. Everything is seeded and runs on the CPU."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from rounding import OtherRounding

from nanokimi.config import (
    DatasetConfig,
    GPTConfig,
    GPTFamily,
    KimiConfig,
    KimiFamily,
    OptimConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
    VariantConfig,
)
from nanokimi.kernels.structs import KERNELS
from nanokimi.runtime import c_compiler, plugins
from nanokimi.runtime.interrupts import STOPPING

os.environ["HF_HUB_OFFLINE"] = "1"  # read when its libraries are imported: no test waits for a network
for number in STOPPING:
    # A shell starts `make test &` with SIGINT ignored, nohup with SIGHUP. A run leaves a signal ignored that it was
    # started to ignore, and so would every process of the tests that send one.
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

TINY_KIMI = KimiConfig(
    vocab_size=61,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    kv_lora_rank=16,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=16,
    intermediate_size=48,
    moe_intermediate_size=16,
    n_routed_experts=4,
    num_experts_per_tok=2,
    routed_scaling_factor=1.4,
    max_position_embeddings=32,
)
TINY_GPT = GPTConfig(
    vocab_size=61,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=128,
    max_position_embeddings=32,
)
TINY_VARIANT = VariantConfig(
    vocab_size=61,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_latents=3,
    kv_lora_rank=16,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=16,
    moe_intermediate_size=16,
    n_routed_experts=4,
    max_position_embeddings=48,
)
"""Sizes for every part; not valid as a run's settings, which may name only what its parts read."""
AS_KIMI = replace(
    TINY_VARIANT,
    num_attention_heads=2,
    max_position_embeddings=32,
    norm="rmsnorm",
    norm_eps=1e-6,
    positions="rope",
    attention="mla",
    feed_forward="swiglu",
    intermediate_size=48,
    experts="sigmoid-bias",
    n_shared_experts=1,
    first_k_dense_replace=1,
    routed_scaling_factor=1.4,
    aux_loss_alpha=1e-4,
    tie_word_embeddings=False,
    initialization="flat",
    initializer_range=0.05,
)
"""What makes a variant TINY_KIMI."""

TINY_ARMS = """\
nanokimi:
  model:
    {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, kv_lora_rank: 16, qk_nope_head_dim: 16,
     qk_rope_head_dim: 8, v_head_dim: 16, intermediate_size: 48, moe_intermediate_size: 16, n_routed_experts: 4}
  optim: {lr: 1e-2, warmup_steps: 2}
nanogpt:
  model: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, dropout: 0.1}
  optim: {lr: 3e-3, warmup_steps: 2}
"""
"""Both arms of a run that takes seconds, as a settings file has them."""
PATIENCE = 600.0
"""Seconds that a test gives another process for what takes it a few: a loaded machine keeps this deadline, too."""
WORDS = "the small boy found a red ball and gave it to his friend who was very happy but then a dog ran off".split()


def make_text(characters: int = 6000, seed: int = 0) -> str:
    """Sentences of random words: enough structure to learn, different everywhere."""
    generator = torch.Generator().manual_seed(seed)
    text = ""
    while len(text) < characters:
        chosen = torch.randint(len(WORDS), (7,), generator=generator).tolist()
        text += " ".join(WORDS[i] for i in chosen) + ".\n"
    return text[:characters]


def write_study_files(folder: Path, steps: int) -> Path:
    """toy.yaml and text.txt, what a command that runs many trainings is given; returns the folder.

    The models have one layer, since a study audits every architecture; NanoKimi's is one of experts.
    """
    sizes = f"context_length: 16, batch_size: 8, eval_batch_size: 8, max_steps: {steps}"
    train = f"train: {{{sizes}, device: cpu, dtype: fp32}}\n"
    arms = TINY_ARMS.replace(", dropout: 0.1", "").replace("num_hidden_layers: 2", "num_hidden_layers: 1")
    arms = arms.replace("intermediate_size: 48,", "intermediate_size: 48, first_k_dense_replace: 0,", 1)
    (folder / "toy.yaml").write_text("seed: 7\n" + train + arms)
    (folder / "text.txt").write_text(make_text())
    return folder


def study_command(folder: Path, verb: str, *more: str) -> list[str]:
    """The words of `verb` on a folder's toy.yaml and text.txt, with its results in the folder's `out`."""
    named = {"--config": "toy.yaml", "--data": "text.txt", "--out": "out"}
    return [verb, *(word for key, name in named.items() for word in (key, str(folder / name))), *more]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny products gain nothing from a second thread, and two test processes would fight for it."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels() -> None:
    """Compile the kernels into the folder for temporary files, where processes look after the cache.

    Each test has a cache of its own, so every process that it starts would compile them again, which takes seconds.
    """
    shared = c_compiler.native_folders()[-1:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(c_compiler, "native_folders", lambda: shared)
        for source in sorted(KERNELS.glob("*.c")):
            # test_native.py has what happens if it fails.
            with suppress(OSError, RuntimeError, subprocess.SubprocessError):
                c_compiler.find_or_compile(source)


@pytest.fixture(scope="session", autouse=True)
def nothing_loaded_is_garbage() -> None:
    """A collection, such as after memory ran out, need not look at the million objects of torch's modules."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_plugins() -> Iterator[None]:
    """Classes that a test names are known to the process; the next test must not find them there."""
    before = dict(plugins._named)
    yield
    plugins._named.clear()
    plugins._named.update(before)


@pytest.fixture(autouse=True)
def other_rounding() -> Iterator[None]:
    """With ROUNDING=<seed> in the environment, torch rounds as another processor might (rounding.py)."""
    given = os.environ.get("ROUNDING")
    with nullcontext() if given is None else OtherRounding(*map(int, given.split(","))):
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepared data of a test stays out of the user's cache.

    Not by `mktemp`, which reads the names of all earlier folders to find the next number.
    """
    folder = tmp_path_factory.getbasetemp() / "caches" / uuid4().hex
    folder.mkdir(parents=True)
    monkeypatch.setenv("NANOKIMI_CACHE", str(folder))
    return folder


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A small text."""
    path = tmp_path / "text.txt"
    path.write_text(make_text(), encoding="utf-8")
    return path


@pytest.fixture
def tiny_config(text_file: Path) -> Callable[..., RunConfig]:
    """A whole run of seconds; keyword arguments replace fields of its `train` group."""

    def build(**train: object) -> RunConfig:
        settings = dict(
            context_length=16, batch_size=8, max_steps=12, eval_every=6, save_every=6, device="cpu", threads=1
        )
        settings["eval_batch_size"] = 8  # the audit, which takes longest in a tiny run, uses its shape
        settings["dtype"] = "fp32"  # the same numbers on every machine
        optim = OptimConfig(name="muonclip", lr=1e-2, schedule="wsd", min_lr_ratio=0.0, warmup_steps=2)
        return RunConfig(
            seed=7,
            dataset=DatasetConfig(path=str(text_file)),
            train=TrainConfig(**{**settings, **train}),  # type: ignore[arg-type]
            sample=SampleConfig(prompts=("the small boy",), max_new_tokens=20),
            nanokimi=KimiFamily(
                model=replace(TINY_KIMI, vocab_size=None, max_position_embeddings=None), optim=optim
            ),
            nanogpt=GPTFamily(
                model=replace(TINY_GPT, vocab_size=None, max_position_embeddings=None),
                optim=OptimConfig(lr=3e-3, warmup_steps=2),
            ),
        )

    return build


@pytest.fixture
def muon_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Muon's step by torch's operations, which its counters see, not in C."""
    monkeypatch.setattr("nanokimi.kernels.muon.takes_native_step", lambda *_: False)


def write_run(folder: Path, config: RunConfig) -> Path:
    """A run folder whose model has its initial weights: what can be opened, without the seconds of training."""
    from nanokimi.model.build import build_model
    from nanokimi.train.checkpoint import save_weights
    from nanokimi.train.run_folder import set_up

    folder.mkdir(parents=True)
    config, _ = set_up(config, folder)
    save_weights(build_model(config.family.model, config.seed), folder / "model.safetensors")
    return folder


@pytest.fixture
def make_run(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> Callable[..., Path]:
    """Makes the run folder `name` of an arm; keyword arguments replace fields of its configuration."""

    def build(name: str = "run", model: str = "nanokimi", **changes: object) -> Path:
        config = tiny_config()
        family = config.families[model]  # type: ignore[index]
        spread = replace(family, model=replace(family.model, initializer_range=0.3))  # type: ignore[arg-type]
        config = replace(config, model=model, **{model: spread})  # type: ignore[arg-type]
        return write_run(tmp_path / name, replace(config, **changes))  # type: ignore[arg-type]

    return build
