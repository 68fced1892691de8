"""A resumed run is the same run: every optimizer and precision, refused changes, retention, signals and SIGKILL."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PATIENCE, make_text, study_command, write_study_files

from nanokimi import cli
from nanokimi.config import DatasetConfig, ModelName, OptimConfig, RunConfig
from nanokimi.config.files import load_config, save_config
from nanokimi.config.parsing import settings, with_changes
from nanokimi.data.changes import changed_source
from nanokimi.data.store import open_prepared, prepare
from nanokimi.errors import UserError
from nanokimi.runtime import c_compiler
from nanokimi.runtime.device import cpu_has_fast_bf16
from nanokimi.runtime.files import read_json, read_json_lines, seal, write_json
from nanokimi.train import loop
from nanokimi.train.changes import changes_since
from nanokimi.train.checkpoint import (
    load_newest_checkpoint,
    read_state,
    read_tensors,
    set_to_beginning,
)
from nanokimi.train.chosen_weights import weights_of
from nanokimi.train.loop import train
from nanokimi.train.optimizer_state import unflatten_optimizer_
from nanokimi.train.result import finish
from nanokimi.train.run_folder import find_data, resume_set_up, set_up
from nanokimi.train.state import TrainState, build_state
from nanokimi.train.step import train_step

Build = Callable[..., RunConfig]
CLOCKS = {"step_ms", "memory_bytes", "train_seconds"}


def begin(config: RunConfig, folder: Path) -> TrainState:
    folder.mkdir()
    return build_state(*set_up(config, folder), folder)


def reopen(folder: Path) -> TrainState:
    return build_state(load_config(str(folder / "config.yaml")), open_prepared(find_data(folder)), folder)


def records(folder: Path) -> list[dict[str, Any]]:
    lines = read_json_lines(folder / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines]


def tensors(state: TrainState) -> dict[str, torch.Tensor]:
    optimizer = state.optimizer.state_dict()["state"]
    kept = {f"{i}.{k}": v for i, values in optimizer.items() for k, v in values.items() if torch.is_tensor(v)}
    return {**state.model.state_dict(), **kept}


def equal(one: TrainState, other: TrainState) -> bool:
    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a NanoGPT's finished run of four steps, `out`, and what it was made of; only to be read."""
    folder = write_study_files(tmp_path_factory.mktemp("first"), steps=4)
    assert cli.main(start_or_resume(folder)) == 0
    return folder


@pytest.fixture
def finished(first: Path, tmp_path: Path) -> Path:
    """A run that has finished its four steps, which the test may change."""
    return Path(shutil.copytree(first / "out", tmp_path / "run"))


def start_or_resume(folder: Path) -> list[str]:
    more = (
        "--resume",
        "--model",
        "nanogpt",
        "--train.threads",
        "1",
        "--dataset.cache",
        str(folder / "cache"),
        "--track",
        "csv",
    )
    return study_command(folder, "train", *more)


def stopped_after(state: TrainState, step: int) -> None:
    for record in train(state):
        if record["kind"] == "train" and record["step"] == step:
            state.stop_requested = True


# ---- bit for bit


def assert_resumes(config: RunConfig, stops: tuple[int, ...], folder: Path) -> None:
    """A run stopped after each of these steps and taken up again ends as one that was not, in all that it holds."""
    whole = begin(config, folder / "whole")
    list(train(whole))
    broken = folder / "broken"
    state = begin(config, broken)
    for stop in stops:
        stopped_after(state, stop)
        state = reopen(broken)
        assert load_newest_checkpoint(state) and state.step == stop
    list(train(state))
    assert equal(whole, state)
    assert records(broken) == records(folder / "whole")


OPTIMIZERS: list[tuple[str, ModelName, dict[str, Any]]] = [
    ("adamw", "nanogpt", {}),
    ("adamw", "nanokimi", {}),
    ("muonclip", "nanokimi", {}),
    ("muonclip", "nanogpt", {"qk_clip_logits": "rms", "qk_clip_tau": 0.05}),
    ("muon", "nanogpt", {}),
    ("muon", "nanokimi", {}),
    ("truemuon", "nanokimi", {}),
    ("shampooclip", "nanokimi", {"precondition_every": 3, "qk_clip_tau": 0.01}),
    ("shampoo", "nanokimi", {"precondition_every": 3, "handover_steps": 6}),
    ("soap", "nanokimi", {"precondition_every": 3}),
    ("lion", "nanogpt", {"lr": 1e-3}),
    ("torch:NAdam", "nanogpt", {"lr": 1e-3}),
    ("torch:SGD", "nanogpt", {"weight_decay": 0.0}),
    ("pytorch-optimizer:SOAP", "nanokimi", {"options": {"precondition_frequency": 3}}),
    ("pytorch-optimizer:Prodigy", "nanogpt", {"lr": 1.0}),
]
"""Those that treat matrices as wholes with the model that stacks its experts' matrices."""


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("optimizer", "name", "options"),
    OPTIMIZERS,
    ids=[f"{name}-{optimizer}" for optimizer, name, _ in OPTIMIZERS],
)
def test_every_optimizer_and_precision_resumes_bit_for_bit(
    optimizer: str, name: ModelName, options: dict[str, Any], dtype: str, tiny_config: Build, tmp_path: Path
) -> None:
    """Roots, bases, counters and lists of somebody else's come back; roots are renewed before and after."""
    if dtype == "bf16" and not cpu_has_fast_bf16():
        pytest.skip("this CPU has no bf16 matrix products, and a run in bf16 is refused")
    if optimizer.startswith("pytorch-optimizer"):
        pytest.importorskip("pytorch_optimizer")
    config = replace(tiny_config(max_steps=8, eval_every=4, save_every=3, dtype=dtype), model=name)
    optim = OptimConfig(**{"name": optimizer, "lr": 1e-2, "warmup_steps": 2} | options)
    config = replace(config, **{name: replace(config.family, optim=optim)})  # type: ignore[arg-type]
    assert_resumes(config, (1, 4), tmp_path)


@pytest.mark.parametrize("optimizer", ["lion", "soap", "torch:NAdam"])
def test_state_of_another_optimizer_or_shape_is_refused(
    optimizer: str, tiny_config: Build, tmp_path: Path
) -> None:
    config = tiny_config(max_steps=2)
    optim = OptimConfig(name=optimizer, lr=1e-3)
    config = replace(config, nanokimi=replace(config.nanokimi, optim=optim))
    state = begin(config, tmp_path / "run")
    list(train(state))
    (newest,) = (tmp_path / "run" / "checkpoints").glob("step-*2")
    stored = read_state(newest, config.train.batch_size)
    tensors = read_tensors(newest / "optimizer.safetensors")
    name = next(key for key in sorted(tensors) if tensors[key].dim() > 1)
    for wrong in ({k: v for k, v in tensors.items() if k != name}, tensors | {name: tensors[name][..., :1]}):
        if optimizer == "torch:NAdam" and name in wrong:
            continue  # what somebody else's class keeps in which shape is not known
        with pytest.raises((ValueError, KeyError)):
            unflatten_optimizer_(state, wrong, stored["optimizer_state"])


def test_a_run_that_begins_again_begins_with_a_fresh_optimizer(tiny_config: Build, tmp_path: Path) -> None:
    """Prodigy and others count in their groups, which clearing the state would not reset."""
    pytest.importorskip("pytorch_optimizer")
    config = tiny_config(max_steps=4)
    optim = OptimConfig(name="pytorch-optimizer:Prodigy", lr=1.0)
    config = replace(config, nanokimi=replace(config.nanokimi, optim=optim))
    state = begin(config, tmp_path / "run")
    fresh = [dict(g, params=None) for g in state.optimizer.param_groups]
    train_step(state)
    assert [dict(g, params=None) for g in state.optimizer.param_groups] != fresh
    set_to_beginning(state)
    assert [dict(g, params=None) for g in state.optimizer.param_groups] == fresh and not state.optimizer.state


def test_an_evaluation_cut_short_is_undone_and_taken_again(tiny_config: Build, tmp_path: Path) -> None:
    """A signal need not wait for the end of a validation; at each chance that there is to stop one."""
    config = replace(tiny_config(max_steps=6, eval_every=3, eval_batch_size=2), model="nanogpt")
    whole = begin(config, tmp_path / "whole")
    list(train(whole))
    for chance in (1, 3, 60):
        folder = tmp_path / f"broken-{chance}"
        state = begin(config, folder)
        asked = iter(range(1, 1000))
        state.stop_waiting = lambda asked=asked, chance=chance: next(asked) == chance  # type: ignore[misc]
        list(train(state))
        assert not state.finished
        resumed = reopen(folder)
        assert load_newest_checkpoint(resumed)
        list(train(resumed))
        assert equal(whole, resumed), chance
        assert records(folder) == records(tmp_path / "whole"), chance


def test_the_best_weights_are_known_also_after_a_last_evaluation_cut_short(
    tiny_config: Build, tmp_path: Path
) -> None:
    """The last checkpoint was saved before that evaluation, and named as best the weights of the one before."""
    config = replace(tiny_config(max_steps=6, eval_every=3), model="nanogpt")
    state = begin(config, tmp_path / "run")
    state.stop_waiting = lambda: state.step == 6
    list(train(state))
    resumed = reopen(tmp_path / "run")
    assert not state.finished and load_newest_checkpoint(resumed) and resumed.best_step == 3
    list(train(resumed))
    assert finish(resumed, 0, measure_generation=False)["best_step"] == resumed.best_step == 6
    newest = tmp_path / "run" / "checkpoints" / "step-00000006"
    assert read_state(newest, config.train.batch_size)["best_step"] == 3, "so the result has to tell"
    assert weights_of(tmp_path / "run", "best").parent == newest


# ---- what is kept


def test_the_best_checkpoint_is_kept_beside_the_newest(
    tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nanokimi.train import evaluation

    scores = iter([3.0, 2.0, 1.0, 4.0, 5.0, 6.0, 7.0])
    original = evaluation.evaluate
    monkeypatch.setattr(evaluation, "evaluate", lambda *a, **k: replace(original(*a, **k), loss=next(scores)))
    state = begin(tiny_config(eval_every=2, save_every=3, keep_checkpoints=1), tmp_path / "run")
    list(train(state))
    found = sorted(path.name for path in (state.folder / "checkpoints").iterdir())
    assert found == ["step-00000004", "step-00000012"] and state.best_step == 4


def test_by_default_little_can_be_lost(
    tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 5% of the run between saves; and, where steps are slow, at most a minute of the clock."""
    for seconds_per_step, allowed in ((0.001, 5), (25.0, 2), (70.0, 1)):
        state = begin(
            tiny_config(max_steps=100, eval_every=1000, save_every=None), tmp_path / f"{seconds_per_step}"
        )
        clock = [0.0]
        monkeypatch.setattr(loop.time, "monotonic", lambda clock=clock: clock[0])
        state.saved_at = 0.0
        saved = [0]
        for step in range(1, 101):
            state.step = step
            clock[0] += seconds_per_step
            if loop.due_for_saving(state):
                saved.append(step)
                state.saved_step, state.saved_at = step, clock[0]
        gaps = [b - a for a, b in zip(saved, saved[1:], strict=False)]
        assert set(gaps) == {allowed}, seconds_per_step
        monkeypatch.undo()


# ---- changes


def test_what_changed_is_named_and_refused_unless_allowed(tiny_config: Build, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    state = begin(tiny_config(), folder)
    stopped_after(state, 3)
    config = state.config
    optim = replace(config.nanokimi.optim, lr=1e-4)
    changes = {
        "nanokimi.optim.lr": replace(config, nanokimi=replace(config.nanokimi, optim=optim)),
        "train.threads": replace(config, train=replace(config.train, threads=2)),
        "train.max_steps": replace(config, train=replace(config.train, max_steps=20)),
        "seed": replace(config, seed=8),
    }
    for key, changed in changes.items():
        save_config(changed, folder / "config.yaml")  # as if edited by hand
        with pytest.raises(UserError, match=key) as caught:
            load_newest_checkpoint(reopen(folder))
        assert "--allow-changes" in str(caught.value) and "\n" not in str(caught.value)
        again = reopen(folder)
        said: list[str] = []
        assert load_newest_checkpoint(again, allow_changes=True, log=said.append) and again.step == 3
        assert key in said[-1]
        event = records(folder)[-1]
        assert event["event"] == "resumed" and key in event["detail"]
    torch.set_num_threads(1)
    free = replace(config, train=replace(config.train, on_nonfinite="skip", save_every=1, keep_checkpoints=9))
    save_config(free, folder / "config.yaml")
    assert load_newest_checkpoint(reopen(folder)), "these change no number"


@pytest.mark.parametrize("what", ["tokens", "tokenizer"])
def test_other_data_or_another_tokenizer_is_noticed(what: str, tiny_config: Build, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stopped_after(begin(tiny_config(), folder), 3)
    path = folder / "data" / {"tokens": "train.bin", "tokenizer": "tokenizer.json"}[what]
    data = bytearray(path.read_bytes())
    if what == "tokens":
        data[5000] ^= 1
    else:  # another character for one of the ids
        letter = data.rindex(b"w")  # the vocabulary is one string
        data[letter] = ord("W")
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=f"{what}_sha256"):
        load_newest_checkpoint(reopen(folder))


@pytest.fixture
def without_c(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No kernel in C is found any more, as on a machine without a compiler."""
    monkeypatch.setenv("NANOKIMI_NATIVE", "0")
    monkeypatch.setattr(c_compiler, "_problems", {})
    c_compiler._native_library.cache_clear()
    yield
    c_compiler._native_library.cache_clear()


@pytest.mark.skipif(c_compiler.find_compiler() is None, reason="no C compiler on this machine")
def test_other_kernels_are_noticed(
    first: Path, finished: Path, without_c: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their last digits differ, so a run that lost them ended with other weights, without a word."""
    environment, result = (read_json(finished / name) for name in ("environment.json", "result.json"))
    used = {choice["mechanism"]: choice["form"] for choice in result["kernels"]}
    assert environment["kernels"] == used and used["decoded token"] == "C" and used["loss"] == "reference"
    assert environment["kernels_in_c_missing"] is None and result["kernels_in_c_missing"] is None
    again = ["train", "--resume", "--out", str(finished)]
    assert cli.main(again) == 2
    error = capsys.readouterr().err
    assert (
        "'reference' of decoded token, not 'C' (NANOKIMI_NATIVE is 0)" in error and "--allow-changes" in error
    )
    assert cli.main([*again, "--allow-changes"]) == 0
    event = records(finished)[-1]
    assert event["event"] == "resumed" and "decoded token" in event["detail"]
    result = read_json(finished / "result.json")
    assert result["kernels_in_c_missing"] == "NANOKIMI_NATIVE is 0"
    assert read_json(finished / "environment.json") == environment, "what it was begun with"


def test_a_run_of_before_kernels_were_recorded_is_resumed(
    tiny_config: Build, tmp_path: Path, without_c: None
) -> None:
    folder = tmp_path / "run"
    stopped_after(begin(tiny_config(), folder), 3)
    (checkpoint,) = (folder / "checkpoints").glob("step-*")
    content = read_json(checkpoint / "state.json")
    assert content.pop("kernels")["experts"]
    write_json(checkpoint / "state.json", content)
    (checkpoint / "checksums.json").unlink()
    seal(checkpoint)
    assert load_newest_checkpoint(reopen(folder))


def test_a_text_that_changed_under_its_name_is_noticed(
    tiny_config: Build, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run reads its own copy, so it went on as if nothing had happened. A text that is gone is not needed."""
    folder = tmp_path / "run"
    stopped_after(begin(replace(tiny_config(max_steps=4, eval_every=4), model="nanogpt"), folder), 2)
    again = ["train", "--resume", "--out", str(folder)]
    words = text_file.read_text()
    text_file.write_text(words[:-10] + words[:10])
    assert cli.main(again) == 2
    error = capsys.readouterr().err
    assert f"{text_file} has changed since" in error and "--allow-changes" in error
    assert error.count("\n") == 1
    assert cli.main([*again, "--allow-changes"]) == 0
    details = [record["detail"] for record in records(folder) if record["kind"] == "event"]
    assert len(details) == 1 and "tokens_sha256" in details[0]
    text_file.unlink()
    assert cli.main(again) == 0


def test_a_tokenizers_file_that_changed_under_its_name_is_noticed(tiny_config: Build, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = [chr(code) for code in range(32, 288)]
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.train_from_iterator(
        [make_text()],
        tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False),
    )
    made.save(str(tmp_path / "own.json"))
    dataset = replace(tiny_config().dataset, tokenizer=str(tmp_path / "own.json"))
    data = prepare(dataset, tmp_path / "data", 16)
    assert changed_source(dataset, data, tmp_path / "data") is None
    (tmp_path / "own.json").write_text((tmp_path / "own.json").read_text() + "\n")
    assert changed_source(dataset, data, tmp_path / "data") == dataset.tokenizer


def test_tales_of_another_version_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nanokimi import tales

    dataset = DatasetConfig(path="tales-short", characters=20_000)
    data = prepare(dataset, tmp_path / "data", 16)
    assert changed_source(dataset, data, tmp_path / "data") is None
    monkeypatch.setattr(tales, "VERSION", "another")
    assert changed_source(dataset, data, tmp_path / "data") == "tales-short"


@pytest.mark.parametrize("how", ["gone", "shortened", "changed"])
def test_records_that_are_not_what_they_were_are_refused(
    how: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One rule: a run goes on with all the records that it has written, or not at all."""
    path = finished / "metrics.jsonl"
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if how == "shortened" else content.replace(b'"train"', b'"Train"', 1))
    assert cli.main(["train", "--resume", "--out", str(finished)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error and "put it back" in error and error.count("\n") == 1


def test_other_files_whose_loss_or_change_would_go_unnoticed(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What scores are divided by, and the checkpoints of a run that has finished."""
    again = ["train", "--resume", "--out", str(finished)]
    metadata = read_json(finished / "data" / "data.json")
    write_json(
        finished / "data" / "data.json", metadata | {"test_text_bytes": metadata["test_text_bytes"] * 2}
    )
    assert cli.main(again) == 2
    assert "data.json" in capsys.readouterr().err
    write_json(finished / "data" / "data.json", metadata)
    kept = (finished / "metrics.jsonl").read_bytes()
    shutil.rmtree(finished / "checkpoints")
    assert cli.main(again) == 2
    assert "has finished, and its checkpoints are gone" in capsys.readouterr().err
    assert (finished / "metrics.jsonl").read_bytes() == kept


def test_a_changed_plugin_is_noticed_without_the_record_of_plugins(
    tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nanokimi.train import changes

    state = begin(tiny_config(), tmp_path / "run")
    stored = {"config": settings(state.config), "data": state.data.fingerprint, "plugins": {"a.py:A": "12"}}
    monkeypatch.setattr(changes, "plugin_hashes", lambda _: {"a.py:A": "12"})
    assert changes_since(stored, state) == []
    monkeypatch.setattr(changes, "plugin_hashes", lambda _: {"a.py:A": "34"})
    assert changes_since(stored, state) == ["plugins = {'a.py:A': '34'}, not {'a.py:A': '12'}"]


def test_longer_training_on_request(finished: Path) -> None:
    """The commonest change: go on for longer than planned. Refused first, then done, with the old settings kept."""
    longer = ["train", "--resume", "--out", str(finished), "--train.max_steps", "8"]
    assert cli.main(longer) == 2
    assert cli.main([*longer, "--allow-changes"]) == 0
    assert read_json(finished / "result.json")["steps"] == 8
    assert load_config(str(finished / "config-before-1.yaml")).train.max_steps == 4
    assert load_config(str(finished / "config.yaml")).train.max_steps == 8
    assert read_json(finished / "result-before-1.json")["steps"] == 4
    assert read_json(finished / "report.json")["runs"][0]["steps"] == 8
    assert [r["step"] for r in records(finished) if r["kind"] == "train"] == list(range(1, 9))


def test_old_results_do_not_stand_for_new_settings(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was stopped before its new end had the old result and weights beside the new configuration."""
    names = ("result.json", "report.json", "report.html", "comparison.png", "model.safetensors")
    before = {name: (finished / name).read_bytes() for name in names}

    def stopped_at_once(state: TrainState) -> Iterator[dict[str, Any]]:
        state.stop_requested = True
        yield from train(state)

    monkeypatch.setattr("nanokimi.train.run.train", stopped_at_once)
    longer = ["train", "--resume", "--out", str(finished), "--train.max_steps", "8", "--allow-changes"]
    assert cli.main(longer) == 128
    assert load_config(str(finished / "config.yaml")).train.max_steps == 8
    assert not any((finished / name).exists() for name in names)
    aside = {name: finished / f"{Path(name).stem}-before-1{Path(name).suffix}" for name in names}
    assert {name: path.read_bytes() for name, path in aside.items()} == before
    capsys.readouterr()
    for command in ("report", "sample"):
        assert cli.main([command, str(finished)]) == 2
        assert "has not finished" in capsys.readouterr().err
    shutil.rmtree(finished / "checkpoints")
    assert cli.main(["train", "--resume", "--out", str(finished)]) == 2, "it would begin again"
    assert "its checkpoints are gone" in capsys.readouterr().err


def test_only_what_decides_a_result_sets_it_aside(
    tiny_config: Build, text_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    begin(replace(tiny_config(), model="nanogpt"), folder)
    (folder / "result.json").write_text("{}")
    config = load_config(str(folder / "config.yaml"))
    free = with_changes(config, {"train.track": "csv", "compare.turn_steps": 3})
    resume_set_up(free, folder, allow_changes=True)
    assert (folder / "result.json").exists()
    words = text_file.read_text()
    text_file.write_text(words[:-10] + words[:10])
    resume_set_up(free, folder, allow_changes=True)
    assert (folder / "result-before-1.json").exists() and not (folder / "result.json").exists()


def test_another_kind_of_budget_takes_the_place_of_the_old_one(finished: Path) -> None:
    """It used to be written beside the old one, which decided: the run ended where it was, and its file had two."""
    old = load_config(str(finished / "config.yaml")).train
    tokens = 6 * old.batch_size * old.context_length
    longer = ["train", "--resume", "--out", str(finished), "--train.max_tokens", str(tokens)]
    assert cli.main([*longer, "--allow-changes"]) == 0
    assert read_json(finished / "result.json")["steps"] == 6
    train = load_config(str(finished / "config.yaml")).train
    assert (train.max_steps, train.max_tokens) == (None, tokens)


def test_a_changed_text_that_does_not_fit_changes_nothing(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.txt"
    other.write_text(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ and every other letter there may be: !?()[]{} 0123456789\n" * 99
    )
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    command = ["train", "--resume", "--out", str(finished), "--data", str(other), "--allow-changes"]
    assert cli.main(command) == 2
    assert "vocab_size" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_run_that_died_while_preparing_its_data_is_resumed(
    tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nanokimi.train import run_folder as runs

    folder = tmp_path / "run"
    folder.mkdir()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(runs, "prepare", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        set_up(replace(tiny_config(max_steps=4), model="nanogpt"), folder)
    assert cli.main(["train", "--resume", "--out", str(folder)]) == 0
    assert read_json(folder / "result.json")["steps"] == 4
    assert (folder / "environment.json").is_file()


# ---- who else is in the folder


def test_one_command_starts_resumes_and_repeats_but_a_second_process_is_refused(
    first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a job scheduler would: the same words each time; the lock of a process that was killed is not in the way."""
    kept = ("model.safetensors", "track.csv")
    before = [(first / "out" / name).read_bytes() for name in kept]
    holder = "import sys, time, filelock; lock = filelock.FileLock(sys.argv[1]); "
    holder += "lock.acquire(); print('held'); time.sleep(3600)"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", holder, str(first / "out" / ".lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    capsys.readouterr()
    assert cli.main(start_or_resume(first)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "another process is training in" in line
    process.kill()
    process.wait()
    assert cli.main(start_or_resume(first)) == 0
    assert [(first / "out" / name).read_bytes() for name in kept] == before


# ---- signals and SIGKILL, on real processes


@pytest.fixture
def long_run(tiny_config: Build, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that trains, at its first steps."""
    settings, out = tmp_path / "settings.yaml", tmp_path / "run"
    save_config(replace(tiny_config(max_steps=20000, eval_every=10000), model="nanogpt"), settings)
    process = subprocess.Popen(
        [sys.executable, "-m", "nanokimi", "train", "--config", str(settings), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if (out / "metrics.jsonl").exists() and '"kind": "train"' in (out / "metrics.jsonl").read_text():
            break
        time.sleep(0.01)
    yield process, out
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_second_signal_stops_at_once(
    number: signal.Signals, long_run: tuple[subprocess.Popen[str], Path]
) -> None:
    """Also where the first is not attended to: the process is held while both arrive."""
    process, out = long_run
    process.send_signal(signal.SIGSTOP)
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.001)
    process.send_signal(number)
    errors = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode in (128 + number, -number), errors  # -15: the shell shows 143
    assert "Traceback" not in errors
    state = reopen(out)
    if load_newest_checkpoint(state):
        assert state.step > 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL is a Unix signal")
def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """The short form of `make soak`."""
    command = [sys.executable, str(Path(__file__).with_name("soak.py"))]
    done = subprocess.run(
        [*command, "--kills", "2", "--model", "nanogpt", "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["kills"] == 2 and result["files_equal"] and result["records_equal"]


def test_a_setting_that_did_not_exist_when_it_was_saved_is_no_change(
    tiny_config: Build, tmp_path: Path
) -> None:
    state = begin(tiny_config(), tmp_path / "run")
    stored = {"config": settings(state.config), "data": state.data.fingerprint}
    del stored["config"]["train.compile"]
    assert changes_since(stored, state) == []
    compiled = replace(state, config=replace(state.config, train=replace(state.config.train, compile=True)))
    assert changes_since(stored, compiled) == ["train.compile = True, not False"]
