"""The comparison, run for real at tiny size: turns, report, interruption, death of a worker; and the verdict."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import PATIENCE, TINY_ARMS, make_text

from nanokimi import cli
from nanokimi.compare import run as comparison
from nanokimi.compare.again import report_again
from nanokimi.compare.arm_process import ArmProcess
from nanokimi.compare.summary import arm_segments
from nanokimi.config import RunConfig
from nanokimi.config.arms import arm_configs
from nanokimi.config.files import load_config
from nanokimi.config.parsing import with_changes
from nanokimi.data.store import PreparedData
from nanokimi.errors import TrainingError, UserError
from nanokimi.runtime.files import read_json, read_json_lines
from nanokimi.train import run_folder
from nanokimi.train.loop import train
from nanokimi.train.run import train_alone
from nanokimi.train.run_folder import resume_set_up, set_up
from nanokimi.train.state import build_state

ARMS = {"NanoKimi": "nanokimi", "NanoGPT with Muon": "nanogpt-with-muon", "NanoGPT": "nanogpt"}
"""Each arm and its folder."""
SEEDS = (7, 8)
Capture = pytest.CaptureFixture[str]
CLOCKS = {"step_ms", "memory_bytes", "train_seconds"}
SETTINGS = f"""\
seed: 7
train:
  {{context_length: 16, batch_size: 8, eval_batch_size: 8, max_steps: 45, eval_every: 15, save_every: 100,
    device: cpu, threads: 1}}
sample: {{prompts: [the small boy], max_new_tokens: 20}}
compare: {{turn_steps: 4, seeds: 2}}
{TINY_ARMS}
arms:
  NanoKimi: {{from: nanokimi}}
  NanoGPT with Muon: {{from: nanogpt, optim: {{name: muon}}}}
  NanoGPT: {{from: nanogpt}}
"""
RUN_FIELDS = (  # the fields that report.json promises
    "name params_total params_active flops_per_token tokens train_seconds tokens_per_second val_loss best_val_loss "
    "test_loss test_perplexity test_bits_per_byte test_bits_per_char "
    "val_perplexity val_bits_per_byte val_bits_per_char floor_gap peak_memory_bytes arm seed folder flops audit"
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
    original = ArmProcess.take_turn

    def watched(self: ArmProcess, steps: int) -> Iterator[Any]:
        kinds = []
        for item in original(self, steps):
            kinds.append(item[0]["kind"])
            yield item
        turns.append((self.name, kinds.count("train"), kinds.count("eval")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArmProcess, "take_turn", watched)
        report = comparison.compare(config, folder / "out")
    return Finished(config, folder / "tiny.yaml", folder / "text.txt", folder / "out", report, turns)


def timeless(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k not in CLOCKS} for r in read_json_lines(path / "metrics.jsonl")]


# ---- the report of a real comparison


def test_the_report_has_every_promised_field(finished: Finished) -> None:
    report = read_json(finished.out / "report.json")
    assert report == json.loads(json.dumps(finished.report))
    assert set(report) >= {"arms", "runs", "comparisons", "data", "verdict", "spread", "match", "segments"}
    assert report["search_note"].startswith("NOT TUNED")
    assert [(one["seed"], one["arm"]) for one in report["runs"]] == [
        (s, name) for s in SEEDS for name in ARMS
    ]
    assert [one["name"] for one in report["arms"]] == list(ARMS)
    for one in report["runs"]:
        assert set(RUN_FIELDS) <= set(one)
        values = [
            one[name] for name in RUN_FIELDS if name not in ("name", "arm", "folder", "floor_gap", "audit")
        ]
        assert all(isinstance(x, int | float) and math.isfinite(x) and x > 0 for x in values)
        assert one["audit"]["causal"] is True and one["audit"]["max_leak"] >= 0
        assert one["tokens"] == 45 * 8 * 16 and one["steps"] == 45
        assert (finished.out / one["folder"] / "metrics.jsonl").is_file()
        assert (one["decode_ms_per_token"] is None) is (one["seed"] != 7), "timed for the first seed alone"
    assert set(report["verdict"]) == {"sentence", "winner", "ranked"}
    text = finished.text.read_bytes()
    assert report["data"]["file_bytes"] == len(text)
    assert set(report["data"]["baselines"]) == {"unigram", "5-gram", "gzip"}


def test_the_documentation_names_every_field(finished: Finished) -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "report.md").read_text(encoding="utf-8")
    report = finished.report
    named = {*report, *report["verdict"], *report["arms"][0], *report["comparisons"][0], *report["match"]}
    named |= set(report["runs"][0]) - {"schema_version"}
    missing = {name for name in named if not re.search(rf"\b{name}\b", text)}
    assert not missing


def test_means_and_pairs_follow_from_the_runs(finished: Finished) -> None:
    losses = {name: [r["test_loss"] for r in finished.report["runs"] if r["arm"] == name] for name in ARMS}
    for arm in finished.report["arms"]:
        assert arm["test_loss"] == pytest.approx(sum(losses[arm["name"]]) / 2)
        assert arm["deviation"] == pytest.approx(
            abs(losses[arm["name"]][0] - losses[arm["name"]][1]) / math.sqrt(2)
        )
    pairs = finished.report["comparisons"]
    assert [(pair["first"], pair["second"]) for pair in pairs] == [*itertools.combinations(ARMS, 2)]
    for pair in pairs:
        differences = [a - b for a, b in zip(losses[pair["first"]], losses[pair["second"]], strict=True)]
        assert pair["per_seed"] == pytest.approx(differences) and pair["tests"] == 3
        assert pair["ci95"][0] < pair["mean"] < pair["ci95"][1]
        assert pair["text95"][0] < differences[0] < pair["text95"][1], "over the text: of the first seed"


def test_page_and_picture_exist(finished: Finished) -> None:
    page = (finished.out / "report.html").read_text(encoding="utf-8")
    assert finished.report["verdict"]["sentence"].split(":")[0] in page
    assert (finished.out / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_a_comparison_without_its_report_has_it_made_again_of_the_results(finished: Finished) -> None:
    page = (finished.out / "report.html").read_bytes()
    (finished.out / "report.json").unlink()
    (finished.out / "report.html").unlink()
    assert cli.main(["report", str(finished.out)]) == 0
    assert read_json(finished.out / "report.json") == json.loads(json.dumps(finished.report))
    assert (finished.out / "report.html").read_bytes() == page


@pytest.mark.parametrize(("name", "seed"), [("NanoKimi", 7), ("NanoGPT with Muon", 8)])
def test_each_arm_ends_bit_for_bit_as_when_trained_alone(
    name: str, seed: int, finished: Finished, tmp_path: Path
) -> None:
    result = train_alone(replace(arm_configs(finished.config)[name], seed=seed), tmp_path / "alone")
    folder = finished.out / ARMS[name] / f"seed-{seed}"
    assert timeless(tmp_path / "alone") == timeless(folder)
    (inside,) = (r for r in finished.report["runs"] if (r["arm"], r["seed"]) == (name, seed))
    for field in ("val_loss", "test_loss", "best_val_loss", "params_active", "flops_per_token", "tokens"):
        assert result[field] == inside[field], field
    weights = [(place / "model.safetensors").read_bytes() for place in (tmp_path / "alone", folder)]
    assert weights[0] == weights[1]


def test_turns_alternate_until_all_are_done_seed_by_seed(finished: Finished) -> None:
    half = len(finished.turns) // 2
    for seed, turns in zip(SEEDS, (finished.turns[:half], finished.turns[half:]), strict=True):
        names = [name for name, _, _ in turns]
        assert names == [f"{name}, seed {seed}" for name in ARMS] * (len(names) // 3)
        steps = [taken for _, taken, _ in turns]
        assert steps[:-3] == [4] * 33 and steps[-3:] == [1] * 3, (
            "4 steps a turn, 45 in all, the last one short"
        )


def test_the_saved_config_repeats_the_comparison(finished: Finished) -> None:
    saved = load_config(str(finished.out / "config.yaml"))
    assert saved.train.max_steps == 45 and list(saved.arms) == list(ARMS)
    for name, slug in ARMS.items():
        config = load_config(str(finished.out / slug / "seed-8" / "config.yaml"))
        assert (config.name, config.seed, config.arms) == (name, 8, {})
        assert (finished.out / slug / "seed-8" / "model.safetensors").is_file()
    assert not list(finished.out.glob("*/seed-*/data")), "the tokens are stored once, for all"


def test_a_comparison_is_not_written_into_a_folder_that_is_taken(finished: Finished) -> None:
    before = (finished.out / "report.json").read_bytes()
    with pytest.raises(UserError, match="already holds files"):
        comparison.compare(finished.config, finished.out)
    assert (finished.out / "report.json").read_bytes() == before


def test_a_picture_that_cannot_be_drawn_does_not_cost_the_verdict(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """A notebook's MPLBACKEND once ended a comparison with a traceback, after all training and without a verdict."""

    def broken(*_: object) -> bytes:
        raise RuntimeError("no\nTeX")

    out = tmp_path / "out"
    shutil.copytree(finished.out, out)
    (out / "report.json").unlink()
    (out / "report.html").unlink()
    monkeypatch.setattr("nanokimi.report.page.svg", broken)
    assert cli.main(["compare", "--resume", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert finished.report["verdict"]["sentence"] in printed.out and "Open:" not in printed.out
    assert finished.report["search_note"] in printed.out
    assert read_json(out / "report.json")["verdict"] == finished.report["verdict"]
    (line,) = (line for line in printed.err.splitlines() if line.startswith("nanokimi: "))
    assert "(RuntimeError: no TeX)" in line and line.endswith(f"Try again: nanokimi report {out}")


def test_sample_and_evaluate_take_a_comparison(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sample", str(finished.out), "--prompt", "the small", "--max_new_tokens", "4"]) == 0
    told = capsys.readouterr().out
    assert [line for line in told.splitlines() if line.startswith("---")] == [f"--- {name}" for name in ARMS]
    assert cli.main(["evaluate", str(finished.out), "--json"]) == 0
    scores = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {(one["name"], one["seed"]): one["test_loss"] for one in scores}
    assert found == {(r["arm"], r["seed"]): pytest.approx(r["test_loss"]) for r in finished.report["runs"]}


# ---- interruption and death


def when_all_have_trained(patch: pytest.MonkeyPatch, act: Callable[[list[ArmProcess]], None]) -> None:
    """Call `act` with the arms once each has had a turn."""
    original = ArmProcess.take_turn
    turns: list[ArmProcess] = []

    def watched(self: ArmProcess, steps: int) -> Iterator[Any]:
        if len(turns) == len(ARMS):
            act(list(turns))
        turns.append(self)
        return original(self, steps)

    patch.setattr(ArmProcess, "take_turn", watched)


def compare_command(finished: Finished, out: Path, *options: str) -> list[str]:
    command = ["compare", "--config", str(finished.settings), "--data", str(finished.text)]
    return [*command, "--out", str(out), *options]


def interrupt(finished: Finished, out: Path, number: signal.Signals, seeds: int, capsys: Capture) -> None:
    """Signal a comparison and its processes in its first seed: Ctrl-C and service managers reach the whole group."""

    def signal_all(_: list[ArmProcess]) -> None:
        for process in psutil.Process().children(recursive=True):
            process.send_signal(number)
        signal.raise_signal(number)

    with pytest.MonkeyPatch.context() as patch:
        when_all_have_trained(patch, signal_all)
        status = cli.main(compare_command(finished, out, "--compare.seeds", str(seeds)))
    errors = capsys.readouterr().err
    assert status == 128 + number, errors
    assert "Traceback" not in errors
    assert f"nanokimi compare --resume --out {out}" in errors.splitlines()[-1]
    assert not (out / "report.json").exists()
    folders = [out / slug / "seed-7" for slug in ARMS.values()]
    assert all(list((folder / "checkpoints").iterdir()) for folder in folders), "each was saved"
    assert max(timeless(folder)[-1]["step"] for folder in folders) < 45, "it was stopped before its end"


@pytest.mark.parametrize(("number", "seeds"), [(signal.SIGINT, 2), (signal.SIGHUP, 1)])
def test_an_interrupted_comparison_resumes_to_the_same_end(
    number: signal.Signals, seeds: int, finished: Finished, tmp_path: Path, capsys: Capture
) -> None:
    """Also if a second seed has not begun. Another number of seeds changes no run, and one names no winner."""
    out = tmp_path / "out"
    interrupt(finished, out, number, seeds, capsys)
    assert cli.main(["compare", "--resume", "--out", str(out)]) == 0
    report = read_json(out / "report.json")
    for one, expected in zip(report["runs"], finished.report["runs"][: seeds * len(ARMS)], strict=True):
        assert timeless(out / one["folder"]) == timeless(finished.out / expected["folder"])
        assert one["test_loss"] == expected["test_loss"] and one["tokens"] == expected["tokens"]
    if seeds == 2:
        assert report["verdict"] == finished.report["verdict"]
    else:
        assert report["verdict"]["winner"] is None and "No winner" in report["verdict"]["sentence"]
        assert all(pair["ci95"] is None for pair in report["comparisons"])


def trained_alone(config: RunConfig, out: Path) -> tuple[RunConfig, PreparedData, Path]:
    """A comparison of one arm, trained to its end: its configuration, its data and the run's folder."""
    config, data = set_up(replace(config, arms={"NanoGPT": {"from": "nanogpt"}}), out)
    (arm,) = comparison.make_runs(config, data, out).values()
    folder = comparison.run_folder(out, "NanoGPT", config.seed)
    list(train(build_state(arm, data, folder)))
    return config, data, folder


def test_a_finished_comparison_goes_on_with_other_settings(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used to report the results that it had under the settings that it was given, without a step more."""
    config, data, folder = trained_alone(tiny_config(max_steps=2), tmp_path)
    trained: list[int | None] = []

    def go_on(config: RunConfig, *_: Any) -> list[dict[str, Any]]:
        trained.append(config.train.max_steps)
        return []

    monkeypatch.setattr(comparison, "train_in_turns", go_on)
    for name in ("score_baselines", "build_report", "write_json", "draw_or_say"):
        monkeypatch.setattr(comparison, name, lambda *_: {})

    def resume(**changes: int) -> None:
        (folder / "result.json").write_text("{}")
        again = with_changes(config, {key.replace("__", "."): value for key, value in changes.items()})
        comparison.train_and_report(again, arm_configs(again), data, tmp_path, True, bool(changes))

    for name in ("report.json", "report.html", "comparison.png"):
        (tmp_path / name).write_text("old")
    resume()
    resume(compare__turn_steps=3)
    assert trained == [], "nothing that decides a run's numbers has changed"
    assert (tmp_path / "report.json").exists()
    resume(train__max_steps=4)
    assert trained == [4]
    left = {path.name for path in tmp_path.iterdir() if path.suffix in (".json", ".html", ".png")}
    aside = {"report-before-1.json", "report-before-1.html", "comparison-before-1.png"}
    assert aside <= left, "the old report keeps its figures, under a name that says so"
    assert not left & {"report.json", "report.html", "comparison.png"}, (
        "it stood for the new settings meanwhile"
    )
    names = ("result", ".json"), ("model", ".safetensors")
    assert all((folder / f"{stem}-before-1{suffix}").is_file() for stem, suffix in names)
    assert not any((folder / f"{stem}{suffix}").exists() for stem, suffix in names)


def test_a_finished_run_without_checkpoints_is_not_reported_under_other_settings(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """After `rm -r checkpoints`, a baseline's rate of 1e-9 in --resume --allow-changes got the loss of the old rate."""
    config, data, folder = trained_alone(tiny_config(max_steps=2), tmp_path)
    (folder / "result.json").write_text("{}")
    kept = (folder / "config.yaml").read_text()
    slower = with_changes(config, {"nanogpt.optim.lr": 1e-9})
    comparison.make_runs(slower, data, tmp_path)  # it goes on from its checkpoint
    (folder / "config.yaml").write_text(kept)
    shutil.rmtree(folder / "checkpoints")
    comparison.make_runs(config, data, tmp_path)
    comparison.make_runs(with_changes(config, {"compare.seeds": 2}), data, tmp_path)
    kept = (folder / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"optim\.lr = 1e-09, not .* its checkpoints are gone"):
        comparison.make_runs(slower, data, tmp_path)
    assert (folder / "config.yaml").read_text() == kept
    text = Path(config.dataset.path)
    text.write_text(text.read_text()[::-1])
    with pytest.raises(UserError, match="checkpoints are gone, .* what the text is now"):
        resume_set_up(config, tmp_path, allow_changes=True)


def test_a_change_that_was_ended_while_data_was_prepared_is_not_forgotten(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed without --allow-changes, it reported the old results as those of the new text."""
    config, _, folder = trained_alone(tiny_config(max_steps=2), tmp_path)
    for name in (folder / "result.json", tmp_path / "report.json"):
        name.write_text("{}")
    changed = with_changes(config, {"dataset.val_fraction": 0.2})
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run_folder, "prepare", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        comparison.compare(changed, tmp_path, resume=True, allow_changes=True)
    now = load_config(str(tmp_path / "config.yaml"))
    assert now.dataset.val_fraction == 0.2
    with pytest.raises(UserError, match=r"dataset.val_fraction = 0.2, not 0.1\).* --allow-changes"):
        comparison.compare(now, tmp_path, resume=True)
    with pytest.raises(UserError, match="has not finished: continue with: .* --resume --allow-changes"):
        report_again(tmp_path)

    def refuse(*_: Any) -> None:
        raise AssertionError("goes on")

    monkeypatch.setattr(comparison, "train_in_turns", refuse)
    with pytest.raises(AssertionError, match="goes on"):
        comparison.compare(
            load_config(str(tmp_path / "config.yaml")), tmp_path, resume=True, allow_changes=True
        )
    assert not (folder / "result.json").exists()


def test_a_worker_that_dies_ends_the_comparison(
    finished: Finished, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the machine runs out of memory: an error and exit status 1, no waiting for ever, no orphan."""
    workers: list[psutil.Process] = []

    def kill_one(arms: list[ArmProcess]) -> None:
        workers.extend(psutil.Process(arm.process.pid) for arm in arms)
        workers[0].kill()

    when_all_have_trained(monkeypatch, kill_one)
    status = cli.main(compare_command(finished, tmp_path / "out"))
    errors = capsys.readouterr().err
    assert status == 1, (status, errors)
    assert "Traceback" not in errors
    assert "NanoKimi" in errors.splitlines()[-1] and "out of memory?" in errors.splitlines()[-1]
    assert len(workers) == 3
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert not alive, "an orphan is left"


@pytest.fixture
def arm(finished: Finished, tmp_path: Path) -> Iterator[ArmProcess]:
    """One worker in a folder of its own."""
    folder = tmp_path / "nanogpt"
    folder.mkdir()
    (folder / "config.yaml").write_bytes((finished.out / "nanogpt" / "seed-7" / "config.yaml").read_bytes())
    (tmp_path / "data").symlink_to(finished.out / "data")
    started = ArmProcess("NanoGPT", folder, resume=False)
    yield started
    started.process.kill()
    started.process.join()


def test_a_worker_killed_while_it_starts_is_a_training_error(arm: ArmProcess) -> None:
    """It never read the request: the pipe then breaks in another way than when it dies at work."""
    turn = arm.take_turn(5)
    os.kill(arm.process.pid or 0, signal.SIGSTOP)
    arm.connection.send(("train", 5))
    os.kill(arm.process.pid or 0, signal.SIGKILL)
    arm.process.join()
    with pytest.raises(TrainingError, match="NanoGPT ended with exit code -9"):
        list(turn)


def test_a_worker_killed_between_turns_is_a_training_error(arm: ArmProcess) -> None:
    """The parent notices when it sends the next request, not when it waits for an answer."""
    list(arm.take_turn(1))
    os.kill(arm.process.pid or 0, signal.SIGKILL)
    arm.process.join()
    for request in (lambda: list(arm.take_turn(1)), arm.stop, lambda: arm.finish(True)):
        with pytest.raises(TrainingError, match="NanoGPT ended with exit code -9"):
            request()


def test_what_goes_wrong_in_a_worker_is_said_in_one_line(arm: ArmProcess) -> None:
    (arm.folder / "config.yaml").write_text("seed: many")
    with pytest.raises(UserError, match="NanoGPT: .*seed is many") as caught:
        list(arm.take_turn(1))
    assert "\n" not in str(caught.value)


# ---- segments


def test_segments_by_hand() -> None:
    """16 steps in 8 blocks of 2; an evaluation counts for the block that it ends."""

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


def test_an_arm_that_ends_before_its_first_turn_still_says_why() -> None:
    """The request for the turn then finds nobody; it used to be all that was told."""
    arm = ArmProcess.__new__(ArmProcess)
    arm.name, (arm.connection, worker) = "NanoGPT", Pipe()
    worker.send(("user error", "these weights are another model's"))
    worker.close()
    with pytest.raises(UserError, match="^NanoGPT: these weights are another model's$"):
        list(arm.take_turn(1))
