"""Jobs of a study: named by content, run once, resumed exactly, on several workers; nothing gets lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from conftest import PATIENCE, TINY_ARMS, make_text

from nanokimi import cli
from nanokimi.config import RunConfig
from nanokimi.config.parsing import with_changes
from nanokimi.errors import TrainingError, UserError
from nanokimi.runtime.files import read_json_lines
from nanokimi.study.audits import audit_key, with_leaks_found
from nanokimi.study.jobs import Job, as_job_config, in_blocks, job_key, read_results
from nanokimi.study.pool import Worker, expected_seconds, free_slots
from nanokimi.study.settle import setting_maker
from nanokimi.study.study import Study, StudyArm, job_of, open_study
from nanokimi.study.worker import Order, attempt

CLOCKS = {"cpu_seconds", "train_seconds", "ms_per_step", "peak_memory_bytes", "commit"}
FINGERPRINT = {"tokens_sha256": "a", "tokenizer_sha256": "b"}
SETTINGS = f"""\
seed: 7
train: {{context_length: 16, batch_size: 8, max_steps: STEPS, device: cpu, dtype: fp32}}
{TINY_ARMS}"""


@pytest.fixture
def study(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> Iterator[Study]:
    with open_study(tiny_config(), tmp_path / "study") as opened:
        yield opened


def arm(study: Study, model: str = "nanogpt", **changes: object) -> StudyArm:
    keyed = {key.replace("__", "."): value for key, value in changes.items()}
    config = with_changes(replace(study.config, model=model), keyed)  # type: ignore[arg-type]
    return StudyArm(model, config)


def timeless(lines: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines]


def test_a_name_follows_from_what_decides_the_numbers(study: Study) -> None:
    config = as_job_config(replace(study.config, model="nanogpt"), 3)
    same = {
        "sample.max_new_tokens": 9,
        "train.save_every": 1,
        "train.eval_every": 2,
        "nanokimi.optim.lr": 0.5,
        "dataset.path": "/elsewhere",
        "dataset.cache": "/elsewhere",
    }
    for key, value in same.items():
        assert job_key(with_changes(config, {key: value}), FINGERPRINT) == job_key(config, FINGERPRINT), key
    other = {
        "seed": 4,
        "model": "nanokimi",
        "nanogpt.optim.lr": 0.5,
        "nanogpt.model.hidden_size": 64,
        "train.max_steps": 13,
        "train.batch_size": 4,
        "train.dtype": "bf16",
        "train.on_nonfinite": "skip",
    }
    for key, value in other.items():
        assert job_key(with_changes(config, {key: value}), FINGERPRINT) != job_key(config, FINGERPRINT), key
    assert job_key(config, {**FINGERPRINT, "tokens_sha256": "c"}) != job_key(config, FINGERPRINT)


def test_an_audit_counts_for_every_run_of_its_architecture(study: Study) -> None:
    config = replace(study.config, model="nanogpt")

    def key(changes: dict[str, object], fingerprint: dict[str, str] = FINGERPRINT) -> str:
        return audit_key(with_changes(config, changes), fingerprint)

    for setting, value in {"seed": 9, "nanogpt.optim.lr": 0.5, "train.max_steps": 13}.items():
        assert key({setting: value}) == key({}), setting
    for setting, value in {"nanogpt.model.hidden_size": 64, "train.context_length": 8}.items():
        assert key({setting: value}) != key({}), setting
    assert key({}, {**FINGERPRINT, "tokens_sha256": "c"}) != key({})


@pytest.mark.parametrize("content", ["[]", '{"key": 1}'])
def test_damaged_audits_are_refused(content: str, study: Study) -> None:
    (study.folder / "audits.json").write_text(content)
    with pytest.raises(UserError, match="audits.json is not the file that the study wrote"):
        with_leaks_found([arm(study)], study)


def test_stretches_hold_every_window_once() -> None:
    nats = np.random.default_rng(0).normal(50, 5, 231)
    counts = np.array([16] * 230 + [7])
    sums, tokens = in_blocks(nats, counts)
    assert len(sums) == len(tokens) == 100
    assert sum(sums) == pytest.approx(nats.sum(), abs=0.06) and sum(tokens) == 230 * 16 + 7
    assert in_blocks(nats[:3], np.array([16, 9, 8]))[1] == [16, 9, 8]


def test_results_are_those_of_train_and_nothing_is_run_twice(study: Study) -> None:
    """The score of a job is bit for bit that of `nanokimi train` with the same configuration, and is kept.

    results.jsonl alone, without the folders of the jobs, is enough to go on; only a line cut short is run again.
    """
    from nanokimi.train.run import train_alone

    jobs = [job_of(arm(study, "nanogpt"), seed, "seed") for seed in (1, 2)]
    jobs.append(job_of(arm(study, "nanogpt"), 3, "seed", audited=True))
    with study.pool(workers=2, keep=False) as pool:
        lines = pool.run([*jobs, jobs[0]])
        assert len({worker.process.pid for worker in pool.workers}) == 2
    assert lines[0] == lines[3] and len(read_results(study.folder)) == 3
    assert (
        lines[2]["audit"] == {"causal": True, "where": None, "verdict": "causal"} and "audit" not in lines[0]
    )
    alone = train_alone(replace(jobs[0].config, model="nanogpt"), study.folder.parent / "alone")
    assert lines[0]["val_loss"] == alone["val_loss"] and lines[0]["params_active"] == alone["params_active"]
    assert lines[0]["flops"] == pytest.approx(
        alone["flops_per_token"] * alone["tokens"] + alone["optimizer_flops_per_step"] * alone["steps"]
    )
    assert lines[0]["test_loss"] == alone["test_loss"]
    total = sum(lines[0]["block_nats"]) / len(study.data.test_ids)
    assert total == pytest.approx(lines[0]["test_loss"], abs=1e-4)
    folder = study.folder / "jobs" / lines[0]["key"]
    assert not (folder / "checkpoints").exists() and (folder / "window_nats.npy").exists()
    assert not list(folder.glob("samples"))

    with study.pool(workers=2, keep=False) as pool:
        assert pool.run(jobs) == lines[:3]
        assert pool.workers == [], "nothing to do: no process is started"

    path = study.folder / "results.jsonl"
    for key in read_results(study.folder):
        shutil.rmtree(study.folder / "jobs" / key)
    path.write_bytes(path.read_bytes()[:-20])
    with study.pool(workers=1, keep=False) as pool:
        again = pool.run(jobs)
        assert len(pool.took) == 1
    assert timeless(again) == timeless(lines[:3])
    assert len(read_json_lines(path)) == 3


def test_a_line_that_lacks_what_is_asked_for_is_made_again(study: Study) -> None:
    """First the losses on the test part, then the audit. A line that has more than is asked for serves.

    A trial knows nothing of the test part: what settings are chosen by never opens it, not even with the part gone.
    """
    with study.pool(workers=1, keep=False) as pool:
        test_file = study.folder / "jobs" / "data" / "test.bin"
        content = test_file.read_bytes()
        test_file.write_bytes(b"\0" * len(content))
        (trial,) = pool.run([job_of(arm(study), 1, "tune")])
        assert not (study.folder / "jobs" / trial["key"] / "window_nats.npy").exists()
        test_file.write_bytes(content)
        (judged,) = pool.run([job_of(arm(study), 1, "seed")])
        assert pool.run([job_of(arm(study), 1, "tune")]) == [judged]
        (audited,) = pool.run([job_of(arm(study), 1, "seed", audited=True)])
        assert pool.run([job_of(arm(study), 1, "seed")]) == [audited]
    assert not [name for name in trial if name.startswith("test")]
    assert not trial.keys() & {"block_nats", "floor_gap"} and judged["block_nats"]
    assert judged["test_loss"] != judged["val_loss"] and trial["val_loss"] == judged["val_loss"]
    assert "audit" not in judged and audited["audit"]["causal"]
    assert timeless([{k: v for k, v in audited.items() if k != "audit"}]) == timeless([judged])


def test_a_study_takes_one_gpu_or_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert free_slots("cuda") == ["3", "5"] and free_slots("cuda:1") == ["5"]


def test_what_a_study_would_ignore_or_overwrite_is_refused(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="memory_limit_gb has no effect"):
        with open_study(tiny_config(memory_limit_gb=2.0), tmp_path / "limited"):
            pass
    with pytest.raises(UserError, match="leaves no room for the seeds of a study"):
        with open_study(replace(tiny_config(), seed=2**63 - 1500), tmp_path / "seeds"):
            pass
    (tmp_path / "linked" / "jobs").mkdir(parents=True)
    (tmp_path / "notes").write_text("an unfinished line")
    (tmp_path / "linked" / "results.jsonl").symlink_to(tmp_path / "notes")
    with pytest.raises(UserError, match="is a link"):
        with open_study(tiny_config(), tmp_path / "linked"):
            pass
    assert (tmp_path / "notes").read_text() == "an unfinished line"


def test_a_full_disk_says_how_to_go_on(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match="plan.json: No space left.*repeat the command to go on in .*study"
    ):
        with open_study(tiny_config(), tmp_path / "study"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "plan.json")


def test_an_arm_is_refused_settings_that_cannot_be(study: Study) -> None:
    tried = arm(study).with_settings({"optim.lr": 0.5, "optim.betas": [0.5, 0.6]})
    assert (tried.config.nanogpt.optim.lr, tried.config.nanogpt.optim.betas) == (0.5, (0.5, 0.6))
    with pytest.raises(UserError, match="nanogpt.optim.lr is -1"):
        tried.with_settings({"optim.lr": -1})
    with pytest.raises(UserError, match="train.batch_size is 0"):
        setting_maker(tried, "train.batch_size")(0, 1)


def test_the_time_left_is_that_of_runs_of_the_same_kind(study: Study) -> None:
    """It was the mean of all runs before, shared among all workers: short trials made long runs look short."""

    def job(model: str, purpose: str, steps: int) -> Job:
        return job_of(arm(study, model, train__max_steps=steps), 1, purpose)

    took = [
        (job("nanogpt", "tune", 10), 2.0),
        (job("nanogpt", "tune", 10), 4.0),
        (job("nanokimi", "seed", 20), 9.0),
    ]
    for model, purpose, steps, seconds in (
        ("nanogpt", "tune", 10, 3.0),
        ("nanogpt", "tune", 40, 12.0),
        ("nanogpt", "seed", 40, 12.0),
        ("nanokimi", "seed", 20, 9.0),
        ("variant", "seed", 80, 30.0),
    ):
        assert expected_seconds(job(model, purpose, steps), took) == pytest.approx(seconds), (
            model,
            purpose,
            steps,
        )
    with study.pool(workers=2, keep=False) as pool:
        pool.took = took
        working = SimpleNamespace(
            job=job("nanokimi", "seed", 20), done=2 / 3, process=SimpleNamespace(kill=int)
        )
        pool.workers += [working, SimpleNamespace(job=None, done=0.0, process=working.process)]  # type: ignore[list-item]
        assert pool.seconds_left() == pytest.approx(3.0)
        pool.waiting = [("", job("nanogpt", "tune", 10)), ("", job("nanokimi", "seed", 20))]
        assert pool.seconds_left() == pytest.approx(12.0), "the longer one begins when a worker is free"


def test_a_run_that_fails_does_not_take_others_with_it(study: Study) -> None:
    good, bad = arm(study), arm(study, "nanokimi")
    jobs = [job_of(bad, 1, "seed"), *(job_of(good, seed, "seed") for seed in (1, 2))]
    with study.pool(workers=1, keep=False) as pool:
        folder = study.folder / "jobs" / pool.key(jobs[0])
        folder.mkdir()
        (folder / "config.yaml").write_text("seed: [")
        with pytest.raises(
            TrainingError, match=r"1 of 3 runs failed, the first because nanokimi, seed 1: .*config"
        ):
            pool.run(jobs)
        assert {line["arm"] for line in read_results(study.folder).values()} == {"nanogpt"}
        (folder / "config.yaml").unlink()
        assert len(pool.run(jobs)) == 3


def test_a_worker_that_is_killed_costs_one_run(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [job_of(arm(study, train__max_steps=3000), 1, "seed"), job_of(arm(study), 2, "seed")]
    with study.pool(workers=1, keep=False) as pool:
        killed: list[int] = []
        original = pool.listen

        def kill_once(total: int, waiting: int) -> None:
            worker = pool.workers[0]
            path = study.folder / "jobs" / worker.key / "metrics.jsonl"
            if not killed and path.exists() and worker.process.pid is not None:
                os.kill(worker.process.pid, signal.SIGKILL)
                killed.append(worker.process.pid)
            original(total, waiting)

        monkeypatch.setattr(pool, "listen", kill_once)
        with pytest.raises(TrainingError, match=r"1 of 2 runs failed.*exit code -9"):
            pool.run(jobs)
        assert len(read_results(study.folder)) == 1


def test_a_worker_that_died_while_it_waited_costs_one_run(study: Study) -> None:
    """Giving it a job ended the study with "cannot be written: Broken pipe"."""
    with study.pool(workers=1, keep=False) as pool:
        pool.workers.append(Worker(study.folder / "jobs", None))
        dead = pool.workers[0]
        dead.process.kill()
        dead.process.join()
        with pytest.raises(TrainingError, match=r"1 of 1 runs failed.*exit code -9"):
            pool.run([job_of(arm(study), 1, "seed")])
        assert pool.workers[0] is not dead, "another takes its place"


def test_a_run_that_does_not_fit_into_memory_is_one_line(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a comparison. It was "unexpected MemoryError", with a traceback in a file."""

    def does_not_fit(*_: object) -> None:
        raise MemoryError("the model's weights do not fit into memory: make it smaller")

    monkeypatch.setattr("nanokimi.study.worker.train_job", does_not_fit)
    found = attempt(Pipe()[0], tmp_path, Order("seed", False), tiny_config())
    assert found == ("failed", "the model's weights do not fit into memory: make it smaller")
    assert not list(tmp_path.glob("error.txt"))


def test_an_unforeseen_error_on_a_full_disk_is_one_line(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker ended without a word, as if its parent were gone: "its process ended with exit code 0"."""

    def fails(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("nanokimi.study.worker.train_job", fails)
    monkeypatch.setattr(Path, "write_text", full)
    kind, said = attempt(Pipe()[0], tmp_path, Order("seed", False), tiny_config())
    assert kind == "failed"
    assert said.startswith("unexpected ZeroDivisionError (division by zero), whose traceback is not kept: ")
    assert "No space left" in said


def test_a_diverged_run_is_a_result(study: Study) -> None:
    wild = arm(study, nanogpt__optim__lr=1e30, nanogpt__optim__grad_clip=None)
    with study.pool(workers=1, keep=False) as pool:
        (line,) = pool.run([job_of(wild, 1, "tune")])
    assert line["val_loss"] is None and line["diverged"] and "not finite" in line["why"]


SWEEP_STEPS = 250


def sweep_words(folder: Path, out: str, workers: int) -> list[str]:
    """Three runs of NanoGPT, of a second each, on one worker or two."""
    words = ["sweep", "--config", str(folder / "tiny.yaml"), "--data", str(folder / "text.txt")]
    words += ["--out", str(folder / out), "--model", "nanogpt", "--grid", "0.002,0.003,0.004"]
    return [*words, "--rounds", "0", "--workers", str(workers)]


def steps_recorded(folder: Path) -> dict[str, int]:
    """Of each job that has taken a step, how many."""
    counts = {
        path.parent.name: path.read_bytes().count(b"\n") for path in folder.glob("jobs/*/metrics.jsonl")
    }
    return {key: count for key, count in counts.items() if count}


def steps_taken(folder: Path) -> int:
    """By all jobs together."""
    return sum(steps_recorded(folder).values())


def steps_kept(folder: Path) -> dict[str, int]:
    """Of each job, the step of its newest checkpoint; of one that has finished, all its steps."""
    kept = dict.fromkeys(read_results(folder), SWEEP_STEPS)
    for path in folder.glob("jobs/*/checkpoints/step-*/state.json"):
        key, step = path.parents[2].name, json.loads(path.read_text())["step"]
        kept[key] = max(step, kept.get(key, 0))
    return kept


def cut_short(folder: Path, how: signal.Signals) -> tuple[int, str]:
    """Start or continue the sweep in `cut`, stop it after some steps, and wait for its workers.

    Returns the status and what was written to stderr.
    """
    before = steps_taken(folder / "cut")
    process = subprocess.Popen(
        [sys.executable, "-m", "nanokimi", *sweep_words(folder, "cut", workers=2)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + PATIENCE
    while steps_taken(folder / "cut") < before + 5:
        assert time.monotonic() < deadline, "no job began"
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    error = process.communicate(timeout=PATIENCE)[1]
    psutil.wait_procs(children, timeout=PATIENCE)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    return process.returncode, error


def test_an_interrupted_study_goes_on_where_it_was(tmp_path: Path) -> None:
    """A signal saves all and gives its status; killed, the workers save and end alone; repeating gives the same."""
    (tmp_path / "tiny.yaml").write_text(SETTINGS.replace("STEPS", str(SWEEP_STEPS)))
    (tmp_path / "text.txt").write_text(make_text())
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cli.main(sweep_words(tmp_path, "whole", workers=1)) == 0
    status, error = cut_short(tmp_path, signal.SIGUSR1)
    assert status == 128 + signal.SIGUSR1
    assert error.splitlines()[-1] == f"nanokimi: interrupted; repeat the command to go on in {cut}"
    interrupted = steps_kept(cut)  # a worker that the signal found at its first step keeps none
    assert interrupted == {**dict.fromkeys(interrupted, 0), **steps_recorded(cut)}
    assert 0 < sum(interrupted.values()) and min(interrupted.values()) < SWEEP_STEPS
    assert cut_short(tmp_path, signal.SIGKILL)[0] == -9
    killed = steps_kept(cut)
    assert sum(interrupted.values()) < sum(killed.values()) < 3 * SWEEP_STEPS
    assert min(killed.values()) < SWEEP_STEPS
    assert cli.main(sweep_words(tmp_path, "cut", workers=1)) == 0
    first, second = (read_results(folder) for folder in (whole, cut))
    assert {k: timeless([v]) for k, v in first.items()} == {k: timeless([v]) for k, v in second.items()}
    curves = [json.loads((folder / "sweep.json").read_text())["arms"] for folder in (whole, cut)]
    for curve in (curve for arms in curves for curve in arms.values()):
        assert curve.pop("cpu_seconds") > 0
    assert curves[0] == curves[1]
