"""The comparison, run for real at tiny size: turns, report, interruption, death of a worker; and the verdict."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import PATIENCE, TINY_ARMS, make_text

from nanokimi import cli
from nanokimi.compare import run as comparison
from nanokimi.compare.arm_process import Arm
from nanokimi.compare.stats import t_quantile
from nanokimi.compare.summary import PairedDifference, arm_segments, paired_difference, verdict
from nanokimi.config import ModelName, RunConfig
from nanokimi.config.files import load_config
from nanokimi.errors import TrainingError, UserError
from nanokimi.runtime.files import read_json, read_json_lines
from nanokimi.train.alone import train_alone

MODELS: tuple[ModelName, ...] = ("nanokimi", "nanogpt")
CLOCKS = {"step_ms", "memory_bytes", "train_seconds"}
SETTINGS = f"""\
seed: 7
train: {{context_length: 16, batch_size: 8, max_steps: 45, eval_every: 15, save_every: 100, device: cpu, threads: 1}}
sample: {{prompts: [the small boy], max_new_tokens: 20}}
compare: {{turn_steps: 4}}
{TINY_ARMS}"""
RUN_FIELDS = (  # the fields that report.json promises
    "name params_total params_active flops_per_token tokens train_seconds tokens_per_second val_loss best_val_loss "
    "test_loss test_perplexity test_bits_per_byte test_bits_per_char "
    "val_perplexity val_bits_per_byte val_bits_per_char floor_gap peak_memory_bytes decode_ms_per_token audit"
).split()


@dataclass
class Finished:
    """A comparison that ran to its end, and how."""

    config: RunConfig
    settings: Path
    text: Path
    out: Path
    report: dict[str, Any]
    turns: list[tuple[str, int, int]]  # (arm, training steps taken, evaluations)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "text.txt").write_text(make_text())
    (folder / "tiny.yaml").write_text(SETTINGS)
    config = load_config(str(folder / "tiny.yaml"), ["--data", str(folder / "text.txt")])
    turns = []
    original = Arm.take_turn

    def watched(self: Arm, steps: int) -> Iterator[Any]:
        kinds = []
        for item in original(self, steps):
            kinds.append(item[0]["kind"])
            yield item
        turns.append((self.name, kinds.count("train"), kinds.count("eval")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Arm, "take_turn", watched)
        report = comparison.compare(config, folder / "out")
    return Finished(config, folder / "tiny.yaml", folder / "text.txt", folder / "out", report, turns)


def timeless(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k not in CLOCKS} for r in read_json_lines(path / "metrics.jsonl")]


# ---- the report of a real comparison


def test_the_report_has_every_promised_field(finished: Finished) -> None:
    report = read_json(finished.out / "report.json")
    assert report == json.loads(json.dumps(finished.report))
    assert set(report) >= {"runs", "data", "verdict"}
    assert [one["name"] for one in report["runs"]] == ["NanoKimi", "NanoGPT"]
    for one in report["runs"]:
        assert set(RUN_FIELDS) <= set(one)
        values = [one[name] for name in RUN_FIELDS if name not in ("name", "floor_gap", "audit")]
        assert all(isinstance(x, int | float) and math.isfinite(x) and x > 0 for x in values)
        assert one["audit"]["causal"] is True and one["audit"]["max_leak"] >= 0
        assert one["tokens"] == 45 * 8 * 16 and one["steps"] == 45
    assert set(report["verdict"]) >= {"sentence", "winner", "difference_nats", "ci95_nats", "ranked"}
    text = finished.text.read_bytes()
    assert report["data"]["file_bytes"] == len(text)
    assert set(report["data"]["baselines"]) == {"unigram", "5-gram", "gzip"}


def test_the_verdict_follows_from_the_runs(finished: Finished) -> None:
    kimi, gpt = finished.report["runs"]
    difference = kimi["test_loss"] - gpt["test_loss"]
    assert finished.report["verdict"]["difference_nats"] == pytest.approx(difference, abs=1e-9)
    low, high = finished.report["verdict"]["ci95_nats"]
    assert low < difference < high
    better = min((kimi, gpt), key=lambda one: one["test_loss"])["name"]
    assert finished.report["verdict"]["winner"] == (None if low <= 0 <= high else better)


def test_page_and_picture_exist(finished: Finished) -> None:
    page = (finished.out / "report.html").read_text(encoding="utf-8")
    assert finished.report["verdict"]["sentence"].split(":")[0] in page
    assert (finished.out / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", MODELS)
def test_each_arm_ends_bit_for_bit_as_when_trained_alone(
    name: ModelName, finished: Finished, tmp_path: Path
) -> None:
    result = train_alone(replace(finished.config, model=name), tmp_path / "alone")
    assert timeless(tmp_path / "alone") == timeless(finished.out / name)
    in_comparison = finished.report["runs"][MODELS.index(name)]
    for field in (
        "val_loss",
        "test_loss",
        "best_val_loss",
        "params_total",
        "params_active",
        "flops_per_token",
        "tokens",
    ):
        assert result[field] == in_comparison[field], field
    weights = [
        (folder / "model.safetensors").read_bytes() for folder in (tmp_path / "alone", finished.out / name)
    ]
    assert weights[0] == weights[1]


def test_turns_alternate_until_both_are_done(finished: Finished) -> None:
    names = [name for name, _, _ in finished.turns]
    assert names == ["NanoKimi", "NanoGPT"] * (len(names) // 2)
    steps = [taken for _, taken, _ in finished.turns]
    assert steps[:-2] == [4] * 22 and steps[-2:] == [1, 1], "4 steps a turn, 45 in all, the last one short"


def test_the_saved_config_repeats_the_comparison(finished: Finished) -> None:
    assert load_config(str(finished.out / "config.yaml")).train.max_steps == 45
    for name in MODELS:
        assert load_config(str(finished.out / name / "config.yaml")).model == name
        assert (finished.out / name / "model.safetensors").is_file()
    assert not (finished.out / "nanokimi" / "data").exists(), "the tokens are stored once, for both"


def test_a_comparison_is_not_written_into_a_folder_that_is_taken(finished: Finished) -> None:
    before = (finished.out / "report.json").read_bytes()
    with pytest.raises(UserError, match="already holds files"):
        comparison.compare(finished.config, finished.out)
    assert (finished.out / "report.json").read_bytes() == before


# ---- interruption and death


def start_comparison(finished: Finished, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nanokimi", "compare", "--config", str(finished.settings)]
    command += ["--data", str(finished.text), "--out", str(out), *options]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_for_training(process: subprocess.Popen[str], out: Path) -> None:
    """Until the second arm has had a turn, too."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        metrics = out / "nanogpt" / "metrics.jsonl"
        if metrics.exists() and '"kind": "train"' in metrics.read_text():
            return
        time.sleep(0.005)
    process.kill()
    raise AssertionError(f"no training seen; {process.communicate()}")


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        _, errors = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, errors


def interrupt(finished: Finished, out: Path, number: signal.Signals) -> None:
    """Signal a comparison at work and its workers: Ctrl-C, `timeout` and service managers reach the whole group."""
    process = start_comparison(finished, out)
    wait_for_training(process, out)
    os.killpg(process.pid, number)
    status, errors = end_of(process)
    assert status == 128 + number, errors
    assert "Traceback" not in errors
    assert f"nanokimi compare --resume --out {out}" in errors.splitlines()[-1]
    assert not (out / "report.json").exists()
    for name in MODELS:
        assert list((out / name / "checkpoints").iterdir()), f"{name} was saved"
    assert max(timeless(out / name)[-1]["step"] for name in MODELS) < 45, "it was stopped before its end"


def test_an_interrupted_comparison_resumes_to_the_same_end(finished: Finished, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(finished, out, signal.SIGINT)
    assert cli.main(["compare", "--resume", "--out", str(out)]) == 0
    report = read_json(out / "report.json")
    for name, one, expected in zip(MODELS, report["runs"], finished.report["runs"], strict=True):
        assert timeless(out / name) == timeless(finished.out / name)
        assert one["val_loss"] == expected["val_loss"] and one["tokens"] == expected["tokens"]
    assert report["verdict"]["difference_nats"] == finished.report["verdict"]["difference_nats"]


def test_a_comparison_that_is_told_to_end_saves_both_arms(finished: Finished, tmp_path: Path) -> None:
    interrupt(finished, tmp_path / "out", signal.SIGTERM)


def test_a_worker_that_dies_ends_the_comparison(finished: Finished, tmp_path: Path) -> None:
    """As when the machine runs out of memory: an error and exit status 1, no waiting for ever, no orphan."""
    out = tmp_path / "out"
    process = start_comparison(finished, out, "--train.max_steps=100000", "--nanogpt.optim.warmup_steps=1")
    wait_for_training(process, out)
    family = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in family if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    status, errors = end_of(process)
    assert status == 1, (status, errors)
    assert "Traceback" not in errors
    assert "NanoKimi" in errors.splitlines()[-1] and "out of memory?" in errors.splitlines()[-1]
    gone, alive = psutil.wait_procs(family, timeout=PATIENCE)
    assert not alive, "an orphan is left"


@pytest.fixture
def arm(finished: Finished, tmp_path: Path) -> Iterator[Arm]:
    """One worker in a folder of its own."""
    folder = tmp_path / "nanogpt"
    folder.mkdir()
    (folder / "config.yaml").write_bytes((finished.out / "nanogpt" / "config.yaml").read_bytes())
    (tmp_path / "data").symlink_to(finished.out / "data")
    started = Arm("NanoGPT", folder, resume=False)
    yield started
    started.process.kill()
    started.process.join()


def test_a_worker_killed_while_it_starts_is_a_training_error(arm: Arm) -> None:
    """It never read the request: the pipe then breaks in another way than when it dies at work."""
    turn = arm.take_turn(5)
    os.kill(arm.process.pid or 0, signal.SIGSTOP)
    arm.connection.send(("go", 5))
    os.kill(arm.process.pid or 0, signal.SIGKILL)
    arm.process.join()
    with pytest.raises(TrainingError, match="NanoGPT ended with exit code -9"):
        list(turn)


def test_a_worker_killed_between_turns_is_a_training_error(arm: Arm) -> None:
    """The parent notices when it sends the next request, not when it waits for an answer."""
    list(arm.take_turn(1))
    os.kill(arm.process.pid or 0, signal.SIGKILL)
    arm.process.join()
    for request in (lambda: list(arm.take_turn(1)), arm.stop, arm.finish):
        with pytest.raises(TrainingError, match="NanoGPT ended with exit code -9"):
            request()


def test_what_goes_wrong_in_a_worker_is_said_in_one_line(arm: Arm) -> None:
    (arm.folder / "config.yaml").write_text("seed: many")
    with pytest.raises(UserError, match="NanoGPT: .*seed is many") as caught:
        list(arm.take_turn(1))
    assert "\n" not in str(caught.value)


# ---- paired difference


def test_the_paired_difference_equals_a_naive_computation() -> None:
    """120 windows in 50 stretches of 2 or 3; Student's t for 49 degrees of freedom is 2.0096."""
    generator = np.random.default_rng(0)
    first, second = generator.gamma(4, 10, 120), generator.gamma(4, 10, 120)
    counts = generator.integers(1, 17, 120)
    tokens = int(counts.sum())
    found = paired_difference(first, second, counts)
    token_mean = sum(float(a) - float(b) for a, b in zip(first, second, strict=True)) / tokens
    total, excess, position = 0.0, [], 0
    for block in range(50):
        size = 3 if block < 20 else 2
        block_sum = sum(float(first[i]) - float(second[i]) for i in range(position, position + size))
        total += block_sum
        excess.append(block_sum - token_mean * sum(int(n) for n in counts[position : position + size]))
        position += size
    assert position == 120
    deviation = math.sqrt(sum(x**2 for x in excess) / 49)
    half = 2.0096 * deviation * math.sqrt(50) / tokens
    assert found.difference == pytest.approx(total / tokens)
    assert found.low == pytest.approx(total / tokens - half, rel=1e-3)
    assert found.high == pytest.approx(total / tokens + half, rel=1e-3)


def test_the_paired_difference_is_antisymmetric_and_sees_pairs() -> None:
    generator = np.random.default_rng(1)
    hardness = generator.gamma(4, 10, 200)  # some windows are hard for both models: pairing removes that
    first, second = hardness + generator.normal(0, 0.1, 200), hardness + 1 + generator.normal(0, 0.1, 200)
    tokens = np.ones(200, dtype=int)
    one, other = paired_difference(first, second, tokens), paired_difference(second, first, tokens)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert one.high - one.low < 0.1 and one.high < 0


@pytest.mark.parametrize("windows", [12, 50, 75, 200, 520])
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_the_interval_covers_the_truth_in_95_of_100_experiments(windows: int, mean: float) -> None:
    generator = np.random.default_rng(windows)
    covered = 0
    for _ in range(2000):
        differences = generator.normal(mean, 1.0, windows)
        found = paired_difference(differences, np.zeros(windows), np.ones(windows, dtype=int))
        covered += found.low <= mean <= found.high
    assert 0.93 < covered / 2000 < 0.97, covered / 2000


def test_unequal_stretches_do_not_widen_the_interval() -> None:
    """A difference common to all tokens is no noise, however windows, and stretches of one or two, differ in length."""
    tokens = np.arange(75) % 7 + 1
    differences = np.random.default_rng(0).normal(10.0, 0.1, 75) * tokens
    found = paired_difference(differences, np.zeros(75), tokens)
    assert found.low < 10.0 < found.high and found.high - found.low < 0.15


def test_one_window_gives_no_interval() -> None:
    found = paired_difference(np.array([3.0]), np.array([1.0]), np.array([4]))
    assert (found.difference, found.low, found.high) == (0.5, -math.inf, math.inf)


@pytest.mark.parametrize(
    ("degrees", "value"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (49, 2.010)],
)
def test_quantiles_of_students_t_agree_with_the_table(degrees: int, value: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(value, rel=1e-3)


# ---- verdict


def result(name: str, loss: float, causal: bool = True) -> dict[str, Any]:
    costs = {"params_active": 100, "params_total": 200, "train_seconds": 10.0, "peak_memory_bytes": 1000}
    audit = {"causal": causal, "max_leak": 0.0}
    return (
        {"name": name, "test_loss": loss, "test_bits_per_byte": loss / 2, "tokens": 512}
        | costs
        | {"audit": audit}
    )


BASELINES = {"5-gram": {"test_loss": 3.0, "bits_per_byte": 2.0}}
Judge = Callable[..., dict[str, Any]]


def judge(
    kimi: float, gpt: float, half: float, *, leaks: tuple[bool, bool] = (False, False)
) -> dict[str, Any]:
    results = [result("NanoKimi", kimi, not leaks[0]), result("NanoGPT", gpt, not leaks[1])]
    difference = kimi - gpt
    return verdict(results, PairedDifference(difference, difference - half, difference + half), BASELINES)


@pytest.mark.parametrize(("kimi", "gpt", "winner"), [(1.5, 1.7, "NanoKimi"), (1.7, 1.5, "NanoGPT")])
def test_the_winner_is_named_with_a_positive_difference(kimi: float, gpt: float, winner: str) -> None:
    found = judge(kimi, gpt, half=0.1)
    assert found["winner"] == winner and found["ranked"] is True
    assert found["sentence"].startswith(f"With this text and seed {winner} is better")
    assert "0.2000" in found["sentence"] and "0.1000 to 0.3000" in found["sentence"]
    assert "1.5000 against 1.7000" in found["sentence"]
    assert found["difference_nats"] == pytest.approx(kimi - gpt)


def test_a_difference_within_the_noise_has_no_winner() -> None:
    found = judge(1.5, 1.55, half=0.1)
    assert found["winner"] is None and found["ranked"] is True
    assert "not distinguishable" in found["sentence"] and "better" not in found["sentence"]
    assert "1.5000" in found["sentence"] and "1.5500" in found["sentence"]


def test_too_little_text_for_an_interval_has_no_winner() -> None:
    found = judge(1.0, 2.0, half=math.inf)
    assert found["winner"] is None and found["ci95_nats"] is None
    assert "too little test text" in found["sentence"]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("leaks", [(True, False), (False, True), (True, True)])
def test_a_leaking_model_is_never_ranked_however_low_its_loss(leaks: tuple[bool, bool]) -> None:
    found = judge(0.1 if leaks[0] else 1.5, 0.1 if leaks[1] else 1.5, half=0.01, leaks=leaks)
    assert found["winner"] is None and found["ranked"] is False
    assert "LEAKING" in found["sentence"] and "better" not in found["sentence"]
    for name, leaking in zip(("NanoKimi", "NanoGPT"), leaks, strict=True):
        assert (name in found["sentence"]) is leaking, "the leaking ones are named, nobody else"


def test_models_below_a_five_gram_are_called_undertrained() -> None:
    assert "5-gram" in judge(3.1, 3.3, half=0.01)["sentence"]
    assert "5-gram" not in judge(2.9, 3.3, half=0.01)["sentence"]


def test_costs_are_multiples_of_the_other() -> None:
    cheap, dear = result("NanoKimi", 1.0), result("NanoGPT", 2.0)
    dear |= {"train_seconds": 40.0, "peak_memory_bytes": 2000, "params_active": 400, "params_total": 1000}
    sentence = verdict([cheap, dear], PairedDifference(-1, -1.1, -0.9), BASELINES)["sentence"]
    for part in ("0.25x the training time", "0.50x the peak memory", "0.25x the active", "0.20x the total"):
        assert part in sentence, sentence
    assert "the same tokens" in sentence
    dear["tokens"] = 1024
    assert (
        "0.50x the tokens" in verdict([cheap, dear], PairedDifference(-1, -1.1, -0.9), BASELINES)["sentence"]
    )


# ---- segments


def test_segments_by_hand() -> None:
    """16 steps in 8 stretches of 2; an evaluation counts for the stretch that it ends."""

    def records(loss: float, ms: list[float], steps: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [{"kind": "eval", "step": 0, "val_loss": 9.0}]
        for step in range(1, steps + 1):
            rows.append({"kind": "train", "step": step, "loss": loss / step, "step_ms": ms[step % 2]})
            if step % 4 == 0:
                rows.append({"kind": "eval", "step": step, "val_loss": loss * 10 + step})
        return rows

    rows = arm_segments({"A": records(1.0, [10, 20], 16), "B": records(2.0, [5, 5], 8)}, tokens_per_step=300)
    assert [(row["from_step"], row["to_step"]) for row in rows] == [(i, i + 1) for i in range(1, 16, 2)]
    first, second = rows[0]["arms"], rows[1]["arms"]
    assert first["A"] == {
        **{"train_loss": 0.75, "ms_per_step": 15.0},  # (1/1 + 1/2) / 2; median of 20 and 10
        **{"tokens_per_second": pytest.approx(300 / 0.015), "val_loss": None},
    }
    assert second["A"]["train_loss"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert (second["A"]["val_loss"], second["B"]["val_loss"]) == (14.0, 24.0)
    assert second["B"]["tokens_per_second"] == pytest.approx(300 / 0.005)
    assert [sorted(row["arms"]) for row in rows] == [["A", "B"]] * 4 + [["A"]] * 4, "B had 8 steps only"


def test_a_run_shorter_than_the_number_of_segments_has_one_for_each_step() -> None:
    rows = [{"kind": "train", "step": step, "loss": 1.0, "step_ms": 1.0} for step in (1, 2, 3)]
    found = arm_segments({"A": rows}, tokens_per_step=1)
    assert [(row["from_step"], row["to_step"]) for row in found] == [(1, 1), (2, 2), (3, 3)]
    assert arm_segments({"A": []}, tokens_per_step=1) == []
