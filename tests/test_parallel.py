"""Several processes (gloo, on the CPU) train what one process trains: losses, weights, clipped heads, biases, saves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import PATIENCE, TINY_ARMS, TINY_GPT, TINY_KIMI, make_text
from parallel_job import Training, command_in_group, counted, in_group, trained
from safetensors.torch import load_file
from torch import nn

from nanokimi import cli
from nanokimi.compare.by_group import NOTHING_TO_SHARE, require_shareable_arms
from nanokimi.config import (
    DatasetConfig,
    GPTFamily,
    KimiFamily,
    ModuleConfig,
    ModuleFamily,
    OptimConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
    VariantConfig,
    VariantFamily,
)
from nanokimi.config.arms import arm_configs
from nanokimi.config.files import load_config
from nanokimi.data.store import open_prepared
from nanokimi.errors import UserError
from nanokimi.kernels import cross_entropy
from nanokimi.measure.communication import Sharing, Traffic, step_traffic
from nanokimi.model.build import build_model
from nanokimi.optim.sharded import deal
from nanokimi.runtime import parallel, processes
from nanokimi.runtime.device import cpu_has_fast_bf16
from nanokimi.runtime.files import read_json, read_json_lines
from nanokimi.runtime.parallel import World
from nanokimi.runtime.plugins import forget_plugins, name_plugin
from nanokimi.train import state
from nanokimi.train.checkpoint import other_digits
from nanokimi.train.expert_parallel import sharing_where_possible
from nanokimi.train.run_folder import set_up
from nanokimi.train.sharding import require_shareable, require_splittable
from nanokimi.train.weights import load_weights, save_weights, untied

KIMI = replace(TINY_KIMI, vocab_size=None, max_position_embeddings=None)
GPT = replace(TINY_GPT, vocab_size=None, max_position_embeddings=None)
VARIANT = VariantConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    attention="gqa",
    feed_forward="relu2",
    experts="topk",
    n_routed_experts=4,
    first_k_dense_replace=1,
    aux_loss_alpha=0.0,
)
CLIPPING = OptimConfig(
    name="muonclip", lr=1e-2, warmup_steps=1, qk_clip_tau=0.2, ns_dtype="fp32", schedule="wsd"
)
PLAIN = replace(CLIPPING, name="muon", qk_clip_tau=OptimConfig().qk_clip_tau)


def config(text: Path, **changes: Any) -> RunConfig:
    train: dict[str, Any] = dict(
        context_length=16, batch_size=12, max_steps=8, eval_every=100, save_every=100
    )
    train |= dict(device="cpu", dtype="fp32", threads=1, eval_batch_size=8) | changes.pop("train", {})
    return RunConfig(
        seed=7,
        dataset=DatasetConfig(path=str(text)),
        train=TrainConfig(**train),
        sample=SampleConfig(prompts=("the small boy",), max_new_tokens=4),
        **changes,
    )


THEIRS = """
import torch
from torch import nn
from torch.nn.functional import pad


class Theirs(nn.Module):
    def __init__(self, vocab_size, width=32):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.mix = nn.Conv1d(width, width, 3)
        self.up = nn.Linear(width, 2 * width)
        self.up.weight = nn.Parameter(0.1 * torch.randn(width, 2 * width).T)
        self.rnn = nn.GRU(2 * width, width, batch_first=True)
        self.unused = nn.Linear(width, 5)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.mix(pad(self.embed(ids).mT, (2, 0))).mT
        return self.head(x + self.rnn(self.up(x).tanh())[0])
"""
"""A user's model with a stack of matrices, a transposed weight, one without a gradient, and a tied one."""
CASES: dict[str, dict[str, Any]] = {
    "NanoKimi with MuonClip": dict(nanokimi=KimiFamily(model=KIMI, optim=CLIPPING)),
    "NanoKimi with Muon": dict(nanokimi=KimiFamily(model=KIMI, optim=PLAIN)),
    "NanoGPT with MuonClip": dict(
        model="nanogpt", nanogpt=GPTFamily(model=GPT, optim=replace(CLIPPING, qk_clip_tau=0.03))
    ),
    "NanoGPT with AdamW": dict(model="nanogpt", nanogpt=GPTFamily(model=GPT, optim=OptimConfig(lr=3e-3))),
    "NanoGPT with Lion": dict(
        model="nanogpt", nanogpt=GPTFamily(model=GPT, optim=OptimConfig(name="lion", lr=3e-4))
    ),
    "a variant with Muon": dict(model="variant", variant=VariantFamily(model=VARIANT, optim=PLAIN)),
    "a user's module with TrueMuon": dict(
        model="module",
        module=ModuleFamily(
            model=ModuleConfig(source="theirs.py:Theirs"), optim=replace(PLAIN, name="truemuon")
        ),
    ),
}
BF16: dict[str, dict[str, Any]] = {
    "bf16": dict(
        nanokimi=KimiFamily(model=KIMI, optim=replace(PLAIN, ns_dtype="auto")), train={"dtype": "bf16"}
    ),
}
HERE = CASES | (BF16 if cpu_has_fast_bf16() else {})
"""The cases that this processor can run."""
needs_bf16 = pytest.mark.skipif(HERE == CASES, reason="this processor only emulates bf16, which is refused")
SHAMPOO = replace(CLIPPING, name="shampooclip", ns_dtype="auto", precondition_every=2)
OF_WHOLE: dict[str, dict[str, Any]] = {
    "NanoKimi with ShampooClip": dict(nanokimi=KimiFamily(model=KIMI, optim=SHAMPOO)),
    "NanoGPT with SOAP": dict(
        model="nanogpt",
        nanogpt=GPTFamily(model=GPT, optim=OptimConfig(name="soap", lr=1e-2, precondition_every=2)),
    ),
}
"""Cases that need all weights in each process. Inverse roots and eigenbases turn rounding errors into differences that
are seen: they are compared with one process that takes the rows of the others as micro-batches."""
OF_SHARED: dict[str, dict[str, Any]] = {
    "six experts": dict(
        nanokimi=KimiFamily(model=replace(KIMI, n_routed_experts=6, num_hidden_layers=3), optim=CLIPPING)
    ),
    "AdamW": dict(nanokimi=KimiFamily(model=KIMI, optim=OptimConfig(lr=3e-3))),
    "a variant": dict(
        model="variant", variant=VariantFamily(model=replace(VARIANT, feed_forward="swiglu"), optim=PLAIN)
    ),
}
"""Cases of experts that processes share. Where two groups of two processes share 6, each process has 3 in common with
one of the other group, and holds 2 or 1 of them."""
MUON = "NanoKimi with Muon"
OF_ALL_SIZES = ("NanoKimi with MuonClip", "NanoGPT with MuonClip")
"""Of 4 experts over 3 processes the last has none; 96 and 32 rows over 3 are uneven for FSDP."""
OTHERS_IN_COPIES = ("NanoGPT with Lion", "a user's module with TrueMuon")
WHOLE_IN_EACH = ("NanoKimi with MuonClip", "NanoGPT with AdamW", *OTHERS_IN_COPIES)
"""The cases in which each of two processes has all weights, too."""


@pytest.fixture(scope="module", autouse=True)
def sharding_loaded() -> Iterator[None]:
    """Fork the processes of this file from a server of its own that has loaded torch's sharding.

    It would take each of them more than a second. With torchrun, they load it themselves.
    """
    server = forkserver.ForkServer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "PRELOADED", [*processes.PRELOADED, "torch.distributed.fsdp"])
        patch.setattr(forkserver, "set_forkserver_preload", server.set_forkserver_preload)
        patch.setattr(forkserver, "connect_to_new_process", server.connect_to_new_process)
        yield
    server._stop()


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """Makes a run folder of a case that is ready to train in."""
    place = tmp_path_factory.mktemp("runs")
    text = place / "text.txt"
    text.write_text(make_text())
    (place / "theirs.py").write_text(THEIRS)
    name_plugin(f"{place / 'theirs.py'}:Theirs")
    numbers = iter(range(1000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOKIMI_CACHE", str(place / "cache"))

        def build(case: str, **train: Any) -> Path:
            folder = place / f"run-{next(numbers)}"
            folder.mkdir()
            of_case = dict({**HERE, **OF_SHARED, **OF_WHOLE}[case])
            set_up(config(text, **{**of_case, "train": of_case.get("train", {}) | train}), folder)
            return folder

        yield build
    forget_plugins()


@pytest.fixture(scope="module")
def alone(make: Callable[..., Path]) -> dict[str, dict[str, Any]]:
    """What one process does in each case."""
    return {case: trained(Training(make(case))) for case in HERE}


TOLD: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("whole", "half", "stopped", "saved whole")},
    "skipped": {"on_nonfinite": "skip"},
    "hurried": {"save_every": None},
}
"""What the runs of two processes' long story differ in."""


@pytest.fixture(scope="module")
def of_two(make: Callable[..., Path]) -> dict[str, list[dict[str, Any]]]:
    """What each of two processes does: in each case, and in one folder after another all that a run may meet."""
    kimi = "NanoKimi with MuonClip"
    folders = {name: make(kimi, **train) for name, train in TOLD.items()}
    jobs = {case: Training(make(case)) for case in HERE}
    jobs |= {"micro-batches": Training(make(kimi), micro_batch_size=4, recompute=True)}
    jobs |= {f"{case}, whole in each": Training(make(case), shard=1) for case in WHOLE_IN_EACH}
    jobs |= {"copies, micro-batches": Training(make(kimi), micro_batch_size=3, shard=1)}
    for case in OF_WHOLE:
        saved = Training(make(case), steps=3, micro_batch_size=6, shard=1, save=True)
        resumed = replace(saved, steps=6, save=False, resume=True)
        jobs |= {f"{case}, saved": saved, f"{case}, resumed": resumed}
        jobs |= {f"{case}, whole in each": Training(make(case), steps=6, shard=1)}
    jobs |= {"saved whole": Training(folders["saved whole"], steps=3, shard=1, save=True)}
    jobs |= {"whole": Training(folders["whole"], steps=6)}
    jobs |= {"half": Training(folders["half"], steps=3, save=True)}
    jobs |= {"resumed": Training(folders["half"], steps=6, resume=True)}
    jobs |= {"stopped": Training(folders["stopped"], steps=6, signalled=(1, 3))}
    jobs |= {"skipped": Training(folders["skipped"], steps=4, broken=(1, 2))}
    jobs |= {"hurried": Training(folders["hurried"], steps=3, hurried=1)}
    jobs |= jobs_that_share(make)
    jobs |= {"shared after all": Training(folders["half"], steps=6, resume=True, expert_parallel=2)}
    calls = [partial(trained, job) for job in jobs.values()]
    for shard in (None, 1):
        calls.append(partial(counted, Training(make(MUON), micro_batch_size=3, shard=shard)))
    shared = Training(make("six experts"), micro_batch_size=3, recompute=True, expert_parallel=2)
    calls.append(partial(counted, shared))
    names = [*jobs, "bytes", "bytes of copies", "bytes of shared experts"]
    results = dict(zip(names, in_group(2, calls), strict=True))
    folders |= {case: jobs[f"{case}, saved"].folder for case in OF_WHOLE}
    return {**results, "folders": folders}  # type: ignore[dict-item]


def jobs_that_share(make: Callable[..., Path]) -> dict[str, Training]:
    """What two processes do that share the experts of each layer."""
    place, spoilt = make("six experts"), make("six experts", on_nonfinite="skip")
    layer = "model.layers.1.mlp.experts"
    jobs = {case: Training(make(case)) for case in HERE if case in BF16}
    jobs |= {case: Training(make(case)) for case in OF_SHARED}
    jobs |= {"micro-batches": Training(make("six experts"), micro_batch_size=4, recompute=True)}
    jobs |= {"starved": Training(make("six experts"), starved=True)}
    jobs |= {"spoilt": Training(spoilt, steps=3, broken=(1, 2), spoilt=layer)}
    jobs |= {"saved": Training(place, steps=3, save=True), "resumed": Training(place, resume=True)}
    shared = {f"{name}, shared": replace(job, expert_parallel=2) for name, job in jobs.items()}
    return {**shared, "no longer shared": Training(place, resume=True)}


@pytest.fixture(scope="module")
def alone_with_all(make: Callable[..., Path]) -> dict[str, dict[str, Any]]:
    """What one process does where several share the experts."""
    found = {case: trained(Training(make(case))) for case in OF_SHARED}
    return {**found, "starved": trained(Training(make("six experts"), starved=True))}


def require_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], bound: float) -> None:
    """Weights within a bound; but one in 10,000 may be off: AdamW and Lion make a whole step of a rounding error."""
    assert one.keys() == other.keys()
    differences = torch.cat([(one[name] - other[name]).abs().flatten() for name in one])
    assert float((differences > bound).double().mean()) <= 1e-4, float(differences.max())


def require_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def require_equal(
    group: list[dict[str, Any]], one: dict[str, Any], bound: float, shard: int | None = None
) -> None:
    """Losses, norms and weights of a group are one process's. Of it, `shard` share a copy of the weights."""
    shard = shard or len(group)
    for process in group:
        assert process["losses"] == pytest.approx(one["losses"], abs=bound)
        assert process["norms"] == pytest.approx(one["norms"], rel=20 * bound)
        assert process["losses"] == group[0]["losses"], "all processes know the same"
    require_close(group[0]["weights"], one["weights"], bound)
    rows = [process["rows"] for process in group]
    if shard > 1:
        assert max(rows) < 0.75 * one["rows"], "each process holds a part of the weights"
    for start in range(0, len(group), shard):
        assert sum(rows[start : start + shard]) == one["rows"], "of one copy"
    bits = [process["bits"] for process in group]
    assert bits == bits[:shard] * (len(group) // shard), "every copy is the same bit for bit"
    assert len(set(bits)) == shard


@pytest.mark.parametrize("case", list(CASES))
def test_two_processes_train_what_one_trains(case: str, alone: Any, of_two: Any) -> None:
    require_equal(of_two[case], alone[case], 1e-6)


@pytest.fixture(scope="module")
def of_three(make: Callable[..., Path], of_two: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each of three processes does, which also go on with what two saved."""
    saved = shutil.copytree(of_two["folders"]["half"], tmp_path_factory.mktemp("of_three") / "half")
    return done_by(3, calls_of_all_sizes(make, saved))


@pytest.fixture(scope="module")
def of_four(make: Callable[..., Path], of_two: Any) -> Any:
    """What each of four processes does, which also go on with what one saved; then in two copies of the weights."""
    kimi = OF_ALL_SIZES[0]
    of_one, half, whole = (make(kimi) for _ in range(3))
    trained(Training(of_one, steps=3, save=True))
    in_copies = (*OF_ALL_SIZES, *OTHERS_IN_COPIES)
    jobs = {f"{case}, in copies": Training(make(case), shard=2) for case in in_copies}
    jobs |= {"whole": Training(whole, steps=6, shard=2)}
    jobs |= {"half": Training(half, steps=3, shard=2, save=True)}
    jobs |= {"resumed in copies": Training(half, steps=6, shard=2, resume=True)}
    # Two processes saved it with all weights in each.
    jobs |= {"passed on": Training(of_two["folders"]["saved whole"], 5, shard=2, resume=True, save=True)}
    calls = calls_of_all_sizes(make, of_one)
    calls |= {name: partial(trained, job) for name, job in jobs.items()}
    calls |= {"bytes of copies": partial(counted, Training(make(MUON), shard=2))}
    pairs = Training(make("six experts"), expert_parallel=2)
    calls |= {"six experts, shared": partial(trained, pairs), "bytes of pairs": partial(counted, pairs)}
    copies = Training(make("six experts"), micro_batch_size=1, shard=2, expert_parallel=2)
    calls |= {"six experts, shared in copies": partial(trained, copies)}
    calls |= {"bytes of pairs in copies": partial(counted, copies)}
    saved = Training(make("six experts"), steps=3, expert_parallel=2, save=True)
    resumed = replace(saved, steps=6, resume=True, save=False)
    by_pairs = {"whole": replace(resumed, folder=make("six experts"), resume=False), "saved": saved}
    by_pairs |= {"resumed": resumed, "passed to copies": replace(resumed, shard=2)}
    calls |= {f"pairs, {name}": partial(trained, job) for name, job in by_pairs.items()}
    return {**done_by(4, calls), "saved by pairs": resumed}


def calls_of_all_sizes(make: Callable[..., Path], saved: Path) -> dict[str, Callable[[], Any]]:
    """What a group of any size does with one copy of the weights, after step 3 of the run in `saved`, too."""
    jobs = {case: Training(make(case)) for case in OF_ALL_SIZES}
    jobs["resumed"] = Training(saved, steps=6, resume=True)
    calls: dict[str, Callable[[], Any]] = {name: partial(trained, job) for name, job in jobs.items()}
    return {**calls, "bytes": partial(counted, Training(make(MUON)))}


def done_by(size: int, calls: dict[str, Callable[[], Any]]) -> dict[str, list[Any]]:
    """What each of `size` processes returned, by the calls' names."""
    return dict(zip(calls, in_group(size, list(calls.values())), strict=True))


@pytest.mark.parametrize("size", [3, 4])
def test_any_number_of_processes_trains_what_one_trains(
    size: int, alone: Any, of_two: Any, of_three: Any, of_four: Any
) -> None:
    """And a run that two processes saved goes on with three, and one that a single process saved with four."""
    found = {3: of_three, 4: of_four}[size]
    for case in OF_ALL_SIZES:
        require_equal(found[case], alone[case], 1e-6)
    require_close(found["resumed"][0]["weights"], of_two["whole"][0]["weights"], 1e-5)
    expected = step_traffic(kimi_on_meta(of_two["folders"]["whole"]), PLAIN, 2, size)
    assert summed(found["bytes"]) == asdict(expected) and expected.copies == 0


# ---- several copies of the weights


@pytest.mark.parametrize("case", WHOLE_IN_EACH)
def test_processes_that_have_all_weights_train_what_one_trains(case: str, alone: Any, of_two: Any) -> None:
    require_equal(of_two[f"{case}, whole in each"], alone[case], 1e-6, shard=1)


@pytest.mark.parametrize("case", OF_WHOLE)
def test_what_needs_whole_matrices_trains_with_all_weights_in_each(
    case: str, make: Callable[..., Path], of_two: Any, tmp_path: Path
) -> None:
    """Two processes with half of the batch each do what one does in two halves; either goes on with what two saved."""
    group, resumed = of_two[f"{case}, whole in each"], of_two[f"{case}, resumed"]
    one = trained(Training(make(case), steps=6, micro_batch_size=6))
    require_equal(group, one, 1e-6, shard=1)
    assert [process["clipped"] for process in group] == 2 * [one["clipped"]]
    assert (one["clipped"] > 0) == (case == "NanoKimi with ShampooClip")
    assert [process["bits"] for process in resumed] == [process["bits"] for process in group]
    saved = shutil.copytree(of_two["folders"][case], tmp_path / "saved")
    alone_again = trained(Training(saved, steps=6, micro_batch_size=6, resume=True))
    require_close(alone_again["weights"], group[0]["weights"], 1e-5)


def test_matrices_must_be_whole_where_an_optimizer_needs_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(parallel, "_joined", [World(0, 4, local_size=4)])
    for case in OF_WHOLE.values():
        require_shareable(config(tmp_path, train={"shard": 1}, **case))
        with pytest.raises(UserError, match="optim.name is .* or say --train.shard 1"):
            require_shareable(config(tmp_path, train={"shard": 2}, **case))


@pytest.mark.parametrize("case", OF_ALL_SIZES)
def test_two_copies_of_two_processes_train_what_one_trains(case: str, alone: Any, of_four: Any) -> None:
    """Heads are clipped and experts balanced by the tokens of all four."""
    group, one = of_four[f"{case}, in copies"], alone[case]
    require_equal(group, one, 1e-6, shard=2)
    assert [process["clipped"] for process in group] == 4 * [one["clipped"]] and one["clipped"] > 0
    for process in group:
        assert all(torch.equal(a, b) for a, b in zip(process["biases"], one["biases"], strict=True))


@pytest.mark.parametrize("case", OTHERS_IN_COPIES)
def test_two_copies_train_a_users_module_and_by_lion(case: str, alone: Any, of_four: Any) -> None:
    require_equal(of_four[f"{case}, in copies"], alone[case], 1e-6, shard=2)


def test_copies_may_take_micro_batches(alone: Any, of_two: Any) -> None:
    """Each copy keeps what it found in the first, until all sum their gradients after the last."""
    require_equal(of_two["copies, micro-batches"], alone[OF_ALL_SIZES[0]], 1e-6, shard=1)


def test_a_run_goes_on_with_another_number_of_copies(of_two: Any, of_four: Any) -> None:
    """Three steps in two processes with all weights in each, two in two copies of two processes, one in one process."""
    passed_on = trained(Training(of_two["folders"]["saved whole"], steps=6, resume=True))
    require_close(passed_on["weights"], of_two["whole"][0]["weights"], 1e-5)
    losses = [of_two["saved whole"][0]["losses"], of_four["passed on"][0]["losses"], passed_on["losses"]]
    assert [len(its) for its in losses] == [3, 2, 1]
    assert sum(losses, []) == pytest.approx(of_two["whole"][0]["losses"], abs=1e-6)


def test_a_run_in_copies_is_resumed_bit_for_bit(of_four: Any) -> None:
    whole, resumed = of_four["whole"], of_four["resumed in copies"]
    assert resumed[0]["losses"] == whole[0]["losses"][3:]
    assert [process["bits"] for process in resumed] == [process["bits"] for process in whole]


def test_the_bytes_of_copies_are_those_of_the_formula(of_two: Any, of_four: Any) -> None:
    """With all weights in each process only gradients are sent, once in a step of two passes, and Muon's updates."""
    model = kimi_on_meta(of_two["folders"]["whole"])
    in_each = step_traffic(model, PLAIN, 2, 2, shard=1, passes=2)
    assert summed(of_two["bytes of copies"]) == asdict(in_each)
    numbers = sum(p.numel() for p in model.parameters())
    assert (in_each.weights, in_each.gradients, in_each.copies) == (0, 0, 2 * 4 * numbers)
    two_copies = step_traffic(model, PLAIN, 2, 4, shard=2)
    assert summed(of_four["bytes of copies"]) == asdict(two_copies)
    assert two_copies.weights < step_traffic(model, PLAIN, 2, 4).weights


def test_what_rounds_otherwise_is_said() -> None:
    stored = {"torch": torch.__version__, "processes": 4, "shard": 4, "config": {}}

    def said(size: int, shard: int, sharing: int = 1) -> list[str]:
        settings = SimpleNamespace(train=SimpleNamespace(expert_parallel=sharing))
        return other_digits(
            stored,
            SimpleNamespace(world=World(0, size), shard=shard, config=settings),  # type: ignore[arg-type]
        )

    assert said(4, 4) == []
    assert said(2, 2) == ["saved by 4 processes, continued by 2"]
    assert said(4, 2) == ["saved with 4 processes to a copy of the weights, continued with 2"]
    assert said(4, 4, 2) == ["saved with the experts shared by 1, continued with 2"]


# ---- experts that processes share


@pytest.mark.parametrize("case", [*OF_SHARED, "starved", "micro-batches"])
def test_processes_that_share_experts_train_what_one_trains(
    case: str, alone_with_all: Any, of_two: Any
) -> None:
    """Also if the experts of a process get no token at all."""
    group, one = of_two[f"{case}, shared"], alone_with_all["six experts" if case == "micro-batches" else case]
    require_equal(group, one, 1e-6)
    for process in group:
        require_alike(process, one)
    assert one["clipped"] > 0 or case in ("AdamW", "a variant")
    assert bool((one["counts"][:, 3:] == 0).all()) == (case == "starved")


@pytest.mark.parametrize(
    ("case", "shard"), [("six experts, shared", 4), ("six experts, shared in copies", 2)]
)
def test_two_groups_that_share_experts_train_what_one_process_trains(
    case: str, shard: int, alone_with_all: Any, of_four: Any
) -> None:
    """Each group has all experts: the two hold parts of them, or each group all in a copy of its own."""
    require_equal(of_four[case], alone_with_all["six experts"], 1e-6, shard=shard)
    for process in of_four[case]:
        require_alike(process, alone_with_all["six experts"])


def require_alike(process: dict[str, Any], one: dict[str, Any]) -> None:
    """Heads are clipped and experts balanced as in one process."""
    assert process["clipped"] == one["clipped"] and torch.equal(process["counts"], one["counts"])
    assert all(torch.equal(a, b) for a, b in zip(process["biases"], one["biases"], strict=True))


@needs_bf16
def test_shared_experts_stay_close_in_bf16(alone: Any, of_two: Any) -> None:
    """Tokens are sent in bf16."""
    for process in of_two["bf16, shared"]:
        assert process["losses"] == pytest.approx(alone["bf16"]["losses"], abs=0.02)


def test_shared_experts_whose_result_is_not_finite_are_named_by_all(of_two: Any) -> None:
    """One process alone finds it, and must not wait for the others when it looks at the experts."""
    for process in of_two["spoilt, shared"]:
        (event,) = [record for record in process["records"] if record["kind"] == "event"]
        assert "first not finite: model.layers.1.mlp.experts;" in event["detail"]
        assert process["step"] == 3 and len(process["losses"]) == 2


def test_a_run_goes_on_with_its_experts_shared_or_not(of_two: Any) -> None:
    """Bit for bit as it was saved, else within the bound for other numbers of processes."""
    whole, resumed = of_two["six experts, shared"], of_two["resumed, shared"]
    assert resumed[0]["losses"] == whole[0]["losses"][3:]
    assert [process["bits"] for process in resumed] == [process["bits"] for process in whole]
    require_close(of_two["no longer shared"][0]["weights"], whole[0]["weights"], 1e-5)
    require_close(of_two["shared after all"][0]["weights"], of_two["whole"][0]["weights"], 1e-5)


def test_what_two_groups_that_share_experts_saved_goes_on_anywhere(of_four: Any) -> None:
    """Each expert was cut over two processes, each of which had others besides."""
    whole, resumed = of_four["pairs, whole"], of_four["pairs, resumed"]
    assert resumed[0]["losses"] == whole[0]["losses"][3:]
    assert [process["bits"] for process in resumed] == [process["bits"] for process in whole]
    saved: Training = of_four["saved by pairs"]
    by_two = {"shared": saved, "in copies": replace(saved, shard=1, expert_parallel=1)}
    found = done_by(2, {name: partial(trained, job) for name, job in by_two.items()})
    one = trained(replace(saved, expert_parallel=1))
    for ends in (of_four["pairs, passed to copies"][0], found["shared"][0], found["in copies"][0], one):
        assert ends["losses"] == pytest.approx(whole[0]["losses"][3:], abs=1e-6)
        require_close(ends["weights"], whole[0]["weights"], 1e-5)


def test_the_bytes_of_shared_experts_are_those_of_the_formula(of_two: Any, of_four: Any) -> None:
    """Where all processes share them, experts are not sent at all, but the tokens that choose them are."""
    config = OF_SHARED["six experts"]["nanokimi"].model
    with torch.device("meta"):
        model = build_model(replace(config, vocab_size=vocabulary(of_two), max_position_embeddings=16), 0)
    traffic = partial(step_traffic, model, CLIPPING, 2)
    forward = of_two["bytes of shared experts"]
    require_bytes(forward, Sharing(2, recomputed=True), partial(traffic, 2, passes=2))
    require_bytes(of_four["bytes of pairs"], Sharing(2), partial(traffic, 4))
    require_bytes(of_four["bytes of pairs in copies"], Sharing(2), partial(traffic, 4, shard=2, passes=3))
    gathered, shared = traffic(2), traffic(2, sharing=Sharing(2))
    experts = 3 * 6 * 16 * 32 * len(model.routers())
    assert gathered.weights - shared.weights == 2 * 4 * experts
    assert gathered.gradients - shared.gradients == 4 * experts


def vocabulary(of_two: Any) -> int:
    return int(of_two["six experts, shared"][0]["weights"]["model.embed_tokens.weight"].shape[0])


def require_bytes(found: Any, sharing: Sharing, formula: Callable[..., Traffic]) -> None:
    received = summed(found)
    pairs, forward = received.pop("pairs"), 2 if sharing.recomputed else 1
    assert pairs > 0 and pairs % forward == 0
    assert received == asdict(formula(sharing=replace(sharing, pairs=pairs // forward)))


def kimi_on_meta(folder: Path) -> nn.Module:
    with torch.device("meta"):
        return build_model(load_config(str(folder / "config.yaml")).nanokimi.model, 0)


def summed(received: list[dict[str, int]]) -> dict[str, int]:
    return {name: sum(process[name] for process in received) for name in received[0]}


def test_the_bytes_of_a_step_are_those_of_the_formula(of_two: Any) -> None:
    """In two passes the weights and the gradients are sent twice; Muon's matrices and what is agreed on once."""
    model = kimi_on_meta(of_two["folders"]["whole"])
    one, two = (step_traffic(model, PLAIN, 2, 2, passes=passes) for passes in (1, 2))
    assert summed(of_two["bytes"]) == asdict(two)
    assert (two.weights, two.gradients) == (2 * one.weights, 2 * one.gradients)
    assert (two.matrices, two.agreed) == (one.matrices, one.agreed) and one.matrices > 0


def test_all_save_when_it_is_time_by_the_clock_of_one(of_two: Any) -> None:
    """What process 1 wishes after step 1 is agreed on in step 2."""
    assert [process["saved_step"] for process in of_two["hurried"]] == [2, 2]
    assert (of_two["folders"]["hurried"] / "checkpoints" / "step-00000002").is_dir()


def test_heads_are_clipped_and_experts_balanced_alike_everywhere(alone: Any, of_two: Any) -> None:
    for case in OF_ALL_SIZES:
        assert alone[case]["clipped"] > 0
        assert [process["clipped"] for process in of_two[case]] == 2 * [alone[case]["clipped"]]
    one, group = alone[OF_ALL_SIZES[0]], of_two[OF_ALL_SIZES[0]]
    assert one["biases"] and float(one["biases"][0].abs().max()) > 0
    for process in group:
        assert all(torch.equal(a, b) for a, b in zip(process["biases"], one["biases"], strict=True))
        assert torch.equal(process["counts"], one["counts"]), "of all tokens"


@needs_bf16
def test_bf16_and_its_kernels_stay_close(alone: Any, of_two: Any) -> None:
    """Half precision rounds each process's sums on its own, so only the size of its steps bounds the difference."""
    for process in of_two["bf16"]:
        assert process["losses"] == pytest.approx(alone["bf16"]["losses"], abs=0.02)


def test_micro_batches_and_recomputed_activations_change_nothing(alone: Any, of_two: Any) -> None:
    """Of 6 rows in each process, 4 at a time would not divide: they are taken 3 at a time."""
    require_equal(of_two["micro-batches"], alone[OF_ALL_SIZES[0]], 1e-6)
    assert [process["micro_batch_size"] for process in of_two["micro-batches"]] == [3, 3]


def test_a_resumed_run_is_the_same_bit_for_bit(of_two: Any) -> None:
    whole, resumed = of_two["whole"][0], of_two["resumed"][0]
    assert resumed["losses"] == whole["losses"][3:]
    require_bits(whole["weights"], resumed["weights"])


def test_one_process_goes_on_with_what_two_saved(of_two: Any, tmp_path: Path) -> None:
    saved = shutil.copytree(of_two["folders"]["half"], tmp_path / "half")
    kept = load_file(saved / "checkpoints" / "step-00000003" / "optimizer.safetensors")
    assert all(tensor.abs().sum() > 0 for name, tensor in kept.items() if name.endswith("momentum_buffer"))
    resumed = trained(Training(saved, steps=6, resume=True))
    require_close(resumed["weights"], of_two["whole"][0]["weights"], 1e-5)
    assert resumed["losses"] == pytest.approx(of_two["whole"][0]["losses"][3:], abs=1e-6)


def test_a_signal_to_one_process_stops_all_at_the_same_step_and_saves(of_two: Any) -> None:
    assert [process["step"] for process in of_two["stopped"]] == [3, 3]
    assert [process["signal"] for process in of_two["stopped"]] == [15, 15]
    assert (of_two["folders"]["stopped"] / "checkpoints" / "step-00000003" / "checksums.json").exists()


def test_a_loss_that_is_not_finite_in_one_process_is_skipped_by_all(of_two: Any) -> None:
    for process in of_two["skipped"]:
        (event,) = [record for record in process["records"] if record["kind"] == "event"]
        assert "first not finite: lm_head" in event["detail"]
        assert process["step"] == 4 and len(process["losses"]) == 3
    folder = of_two["folders"]["skipped"]
    kept = load_file(folder / "nonfinite" / "step-00000002" / "batch.safetensors")
    assert kept["inputs"].shape == (12, 16), "the rows of all processes"
    kinds = [record["kind"] for record in read_json_lines(folder / "metrics.jsonl")]
    assert kinds.count("event") == 1, "written once"


# ---- commands


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A command that trains in the folder `out`."""
    forget_plugins()  # a command refuses those that it does not need
    sizes = (
        "context_length: 16, batch_size: 8, eval_batch_size: 8, max_steps: 8, eval_every: 100, save_every: 3"
    )
    settings = f"seed: 7\nsample: {{max_new_tokens: 4}}\ntrain: {{{sizes}, device: cpu, dtype: fp32}}\n"
    (tmp_path / "toy.yaml").write_text(settings + TINY_ARMS.replace(", dropout: 0.1", ""))
    (tmp_path / "text.txt").write_text(make_text())
    named = {"--config": "toy.yaml", "--data": "text.txt", "--out": "out"}
    return ["train", *(word for key, name in named.items() for word in (key, str(tmp_path / name)))]


def lines_of(said: Path) -> list[str]:
    return [line for line in said.read_text().splitlines() if line.startswith("nanokimi:") or "Error" in line]


def test_memory_that_runs_out_or_a_killed_process_ends_all_with_one_line(
    words: list[str], tmp_path: Path
) -> None:
    """And the last save is whole: another group and then one process go on with it."""
    out, said = tmp_path / "out", tmp_path / "said.txt"
    assert command_in_group(words, said, [("", 0), ("out of memory", 5)]) == [1, 1]
    (line,) = lines_of(said)
    assert "process 1 of 2 ran out of memory at step 5" in line and "micro_batch_size" in line
    said.unlink()
    again = ["train", "--resume", "--out", str(out)]
    less = [*again, "--allow-changes", "--train.micro_batch_size", "2"]
    assert command_in_group(less, said, [("", 0), ("killed", 8)]) == [1, -9]
    assert read_json(out / "checkpoints" / "step-00000006" / "state.json")["micro_batch_size"] == 2
    assert "resumed after step 3" in said.read_text()
    (line,) = lines_of(said)
    assert "another process of this run has ended" in line
    assert f"torchrun --nproc-per-node 2 -m nanokimi train --resume --allow-changes --out {out}" in line
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000003", "step-00000006"]
    assert cli.main(again) == 0
    assert (out / "result.json").is_file()


def test_a_batch_that_the_processes_cannot_share_is_refused_in_one_line(
    words: list[str], tmp_path: Path
) -> None:
    said = tmp_path / "said.txt"
    assert command_in_group([*words, "--train.batch_size", "9"], said, 2 * [("", 0)]) == [2, 1]
    (line,) = lines_of(said)
    assert "train.batch_size is 9, which 2 processes cannot share evenly" in line
    assert not (tmp_path / "out").exists()


def torchrun(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command with two processes, as a user does."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "nanokimi",
        *words,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


def test_torchrun_trains(words: list[str], tmp_path: Path) -> None:
    done = torchrun([*words, "--train.max_steps", "2"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test loss") == 1, "only the main process prints"
    out = tmp_path / "out"
    assert read_json(out / "environment.json")["processes"] == 2
    result = read_json(out / "result.json")
    assert result["steps"] == 2 and result["audit"]["causal"]
    assert (out / "report.html").is_file()


def test_two_processes_compare(words: list[str], tmp_path: Path) -> None:
    """To the report, also a class of the user's. Of the arms only one has experts, which its processes share."""
    said, out = tmp_path / "said.txt", tmp_path / "out"
    (tmp_path / "theirs.py").write_text(THEIRS)
    asked = ["compare", *words[1:], "--train.max_steps", "2", "--train.expert_parallel", "2"]
    asked += ["--arm", f"Theirs: from={tmp_path / 'theirs.py'}:Theirs"]
    assert command_in_group(asked, said, 2 * [("", 0)]) == [0, 0], said.read_text()
    assert [line for line in said.read_text().splitlines() if "experts" in line] == [
        f"{name}: {NOTHING_TO_SHARE}" for name in ("NanoGPT", "Theirs")
    ]
    report = read_json(out / "report.json")
    assert report["verdict"]["ranked"]
    assert [arm["name"] for arm in report["arms"]] == ["NanoKimi", "NanoGPT", "Theirs"]
    assert all(arm["steps"] == 2 for arm in report["arms"]) and (out / "report.html").is_file()
    kept = [read_json(path)["processes"] for path in out.rglob("environment.json")]
    assert kept == [2] * 4, "the comparison's and each arm's"
    arms = [
        load_config(str(out / arm / "seed-7" / "config.yaml")) for arm in ("nanokimi", "nanogpt", "theirs")
    ]
    assert [arm.train.expert_parallel for arm in arms] == [2, 1, 1]


@pytest.mark.parametrize(
    ("changes", "optim", "named"),
    [
        (
            {"shard": 3},
            {},
            "train.shard is 3, which does not divide 4 processes: use one of 1, 2, 4, or null",
        ),
        ({"shard": 8}, {}, "train.shard is 8, which does not divide 4 processes"),
        ({}, {"name": "shampoo", "ns_dtype": "auto"}, "optim.name is shampoo"),
        ({}, {"name": "soap", "ns_dtype": "auto"}, "optim.name is soap"),
        ({"shard": 1}, {"name": "torch:NAdam"}, "optim.name is torch:NAdam"),
        ({}, {"name": "torch:NAdam"}, "optim.name is torch:NAdam"),
        ({}, {"qk_clip_logits": "rms"}, "optim.qk_clip_logits is rms"),
        ({"max_steps": None, "max_seconds": 9.0}, {}, "train.max_seconds"),
        ({"compile": True}, {}, "train.compile"),
        ({"dtype": "fp16"}, {}, "train.dtype is fp16"),
        ({"device": "mps"}, {}, "train.device is mps"),
        ({"device": "cuda:1"}, {}, "train.device is cuda:1"),
        ({"device": "cuda"}, {}, "0 CUDA devices for 9 processes: say train.device cpu"),
    ],
)
def test_what_a_group_cannot_do_is_refused_before_anything_starts(
    changes: dict[str, Any],
    optim: dict[str, Any],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    family = KimiFamily(model=KIMI, optim=replace(CLIPPING, **optim))
    asked = config(tmp_path, nanokimi=family, train=changes)
    if "shard" not in changes:
        require_shareable(asked)  # by one process
    monkeypatch.setattr(parallel, "_joined", [World(0, 4, local_size=9)])
    with pytest.raises(UserError, match=named):
        require_shareable(asked)


NO_MIXTURE = "has no mixture of SwiGLU experts of which each token chooses a few"


@pytest.mark.parametrize(
    ("size", "train", "changes", "named"),
    [
        (1, {}, {}, "this is one process: start a multiple of 2 with torchrun, or say --train"),
        (3, {}, {}, "does not divide the 3 processes"),
        (4, {"shard": 1}, {}, r"does not divide the 1 processes of a copy \(train.shard\)"),
        (
            3,
            {"expert_parallel": 3},
            {},
            r"does not divide the 8 experts of a layer \(n_routed_experts of NanoKimi\)",
        ),
        (4, {}, CASES["NanoGPT with AdamW"], f"NanoGPT {NO_MIXTURE}"),
        (4, {}, CASES["a variant with Muon"], NO_MIXTURE),
        (4, {}, dict(nanokimi=KimiFamily(model=replace(KIMI, first_k_dense_replace=2))), NO_MIXTURE),
    ],
)
def test_experts_that_cannot_be_shared_are_refused(
    size: int,
    train: dict[str, Any],
    changes: dict[str, Any],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(parallel, "_joined", [World(0, size, local_size=size)])
    asked = config(tmp_path, train={"expert_parallel": 2, **train}, **changes)
    require_shareable(replace(asked, train=replace(asked.train, expert_parallel=1)))
    with pytest.raises(UserError, match=f"train.expert_parallel is {asked.train.expert_parallel}, .*{named}"):
        require_shareable(asked)


def test_arms_without_experts_take_part_where_others_share_theirs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(parallel, "_joined", [World(0, 4, local_size=4)])
    families: dict[str, Any] = dict(nanokimi=KimiFamily(model=KIMI), nanogpt=GPTFamily(model=GPT))
    asked = config(tmp_path, train={"expert_parallel": 2}, **families)
    require_shareable_arms(asked)
    arms = sharing_where_possible(arm_configs(asked))
    assert {name: arm.train.expert_parallel for name, arm in arms.items()} == {"NanoKimi": 2, "NanoGPT": 1}
    none = replace(asked, arms={"NanoGPT": {"from": "nanogpt"}})
    with pytest.raises(UserError, match=f"train.expert_parallel is 2, but NanoGPT {NO_MIXTURE}"):
        require_shareable_arms(none)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m.register_parameter("gate", nn.Parameter(torch.tensor(1.0))), "gate has no axis"),
        (
            lambda m: setattr(m.head, "weight", nn.Parameter(m.embed.weight.data)),
            "embed.weight and head.weight share",
        ),
        (lambda m: m.mix.double(), "parameters in float32 and float64"),
    ],
)
def test_a_users_module_that_cannot_be_split_is_refused(
    change: Callable[[Any], None], named: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch refuses the first and the last with an error of its own; the second would be trained as two weights."""
    asked = load_config(str(make("a user's module with TrueMuon") / "config.yaml"))
    model: Any = build_model(asked.family.model, 0)
    change(model.module)
    require_splittable(model, asked.title)  # by one process
    monkeypatch.setattr(parallel, "_joined", [World(0, 2)])
    require_splittable(build_model(asked.family.model, 0), asked.title)
    with pytest.raises(UserError, match=f"{named}.* or train it with one process"):
        require_splittable(model, asked.title)


@pytest.mark.parametrize("command", ["train", "train --dry-run", "compare", "sweep", "bench"])
def test_no_command_of_one_process_ignores_that_experts_are_to_be_shared(
    command: str, words: list[str], tmp_path: Path
) -> None:
    given = words[1:3] if command == "bench" else words[1:]
    with pytest.raises(UserError, match="expert_parallel .*one process"):
        cli.run([*command.split(), *given, "--train.expert_parallel", "2"])
    assert not (tmp_path / "out").exists()


def test_copies_that_one_process_cannot_share_are_refused(words: list[str], tmp_path: Path) -> None:
    """It has all weights, so the setting would do nothing."""
    said = "train.shard is 2, but this is one process: start a multiple of 2 with torchrun, or say --train.shard null"
    for command in (words, [*words, "--dry-run"], ["compare", *words[1:]]):
        with pytest.raises(UserError, match=said):
            cli.run([*command, "--train.shard", "2"])
    assert not (tmp_path / "out").exists()
    require_shareable(config(tmp_path, train={"shard": 1}))


def test_what_auto_chooses_is_refused_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(parallel, "_joined", [World(0, 4, local_size=4)])
    with pytest.raises(UserError, match="train.device is auto, here mps"):
        require_shareable(config(tmp_path, train={"device": "auto"}))


@pytest.mark.parametrize(
    ("command", "option", "named"),
    [
        (
            "compare",
            "--match=seconds",
            "compare.match is seconds, which is measured with all arms in one process",
        ),
        ("train", "--dry-run", "--dry-run measures a run of one process: start it without torchrun"),
    ],
)
def test_what_the_main_process_would_measure_alone_is_refused(
    command: str,
    option: str,
    named: str,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The first would wait for ever for processes that take no part; the second would forecast another run."""
    monkeypatch.setattr(parallel, "_joined", [World(0, 2, local_size=2)])
    with pytest.raises(UserError, match=named):
        cli.run([command, *words[1:], option])
    assert not (tmp_path / "out").exists()


def test_other_commands_run_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_joined", [World(0, 2)])
    with pytest.raises(UserError, match="sample runs in one process: start it without torchrun"):
        cli.run(["sample", "runs/x"])


# ---- parts


def test_any_number_of_processes_chooses_the_same_kernels(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a run that one process saved would be another run for several, whose parts of the logits are smaller."""
    folder = make(MUON)
    settings, data = load_config(str(folder / "config.yaml")), open_prepared(folder / "data")
    logits = 12 * 16 * data.tokenizer.vocab_size
    monkeypatch.setattr(cross_entropy, "LARGE", logits)
    monkeypatch.setattr(state, "shard_", lambda model, train, device: None)
    forms = []
    for size in (1, 2):
        monkeypatch.setattr(parallel, "_joined", [World(0, size)])
        forms.append(state.kernel_forms(state.build_state(settings, data, folder)))
    assert forms[0] == forms[1] and forms[0]["loss"] == "in pieces"


def test_the_rows_of_all_processes_are_the_batch() -> None:
    rows = [list(range(12))[World(rank, 3).share(12)] for rank in range(3)]
    assert rows == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_matrices_are_dealt_by_what_they_cost() -> None:
    shapes = (((64, 64), 1), ((8, 8), 1), ((32, 64), 1), ((32, 64), 1), ((96, 32), 3))
    owners = deal(shapes, 2)
    assert owners[0] != owners[2] and owners[2] == owners[3], "the largest alone costs more than two halves"
    assert set(owners) == {0, 1} and deal(shapes, 1) == [0] * 5


def test_a_tied_weight_is_saved_once_and_an_empty_one_is_not_lost(tmp_path: Path) -> None:
    """Empty tensors all have the address 0, and so have sharded ones: of several, one was saved."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Parameter(torch.zeros(0)), nn.Parameter(torch.zeros(3, 0))
            self.tied = self.full = nn.Parameter(torch.ones(4))
            self.same_memory = nn.Parameter(self.full.data)

    model = Odd()
    assert set(untied(model)) == {"one", "two", "tied"}
    with torch.device("meta"):
        assert set(untied(Odd())) == {"one", "two", "tied", "same_memory"}
    save_weights(model, tmp_path / "weights.safetensors")
    load_weights(model, tmp_path / "weights.safetensors")
