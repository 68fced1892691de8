"""Trackers get what metrics.jsonl holds, by others' names, and never slow or stop a run."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import re
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import PATIENCE

from nanokimi import cli
from nanokimi.config import RunConfig
from nanokimi.config.files import config_text
from nanokimi.runtime.files import read_json, read_json_lines
from nanokimi.train import trackers, tracking
from nanokimi.train.checkpoint import load_newest_checkpoint
from nanokimi.train.loop import train
from nanokimi.train.run import train_alone
from nanokimi.train.run_folder import set_up
from nanokimi.train.state import build_state


def read_csv(run: Path) -> list[dict[str, str]]:
    with open(run / trackers.CSV_FILE, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_csv_and_tensorboard_hold_the_runs_numbers(
    tiny_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Read back with tensorboard's own reader; a third tracker that fails is named in one line, and changes nothing."""
    monkeypatch.setitem(trackers.OPENERS, "trackio", no_login)
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    result = train_alone(tiny_config(track="csv,trackio,tensorboard"), run)
    said = capsys.readouterr().err
    assert said.count("NanoKimi: tracking with trackio has ended (not logged in") == 1
    records = read_json_lines(run / "metrics.jsonl")
    trained = [record for record in records if record["kind"] == "train"]
    scored = [record for record in records if record["kind"] == "eval"]

    rows = read_csv(run)
    assert [float(row["train/loss"]) for row in rows if row["train/loss"]] == [r["loss"] for r in trained]
    assert [float(row["val/bpb"]) for row in rows if row["val/bpb"]] == [
        r["val_bits_per_byte"] for r in scored
    ]
    assert float(rows[-1]["test/loss"]) == result["test_loss"] and rows[-1]["iter"] == "12"
    last = [row for row in rows if row["train/loss"]][-1]
    assert float(last["total_training_flops"]) == trained[-1]["flops"]
    assert float(last["train/tok_per_sec"]) == pytest.approx(8 * 16 / float(last["train/dt"]))
    assert float(last["lr"]) == pytest.approx(1e-2 * float(last["train/lrm"]))

    events = reader.EventAccumulator(str(run / trackers.TENSORBOARD_FOLDER))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags == set(trackers.COLUMNS) - {"step", "iter"}
    points = events.Scalars("train/loss")
    assert [(p.step, p.value) for p in points] == [(r["step"], pytest.approx(r["loss"])) for r in trained]
    assert [p.step for p in events.Scalars("val/loss")] == [r["step"] for r in scored]
    assert events.Tags()["tensors"] == ["config/text_summary", "sample/text_summary"]


def test_nothing_is_tracked_by_default(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    assert tiny_config().train.track == ""
    with tracking.tracked(SimpleNamespace(config=tiny_config()), print):  # type: ignore[arg-type]
        assert not any(thread.name == "nanokimi tracks" for thread in threading.enumerate())


def state_of(tiny_config: Callable[..., RunConfig], folder: Path, track: str, step: int = 0) -> Any:
    folder.mkdir(exist_ok=True)
    data = SimpleNamespace(train_ids=range(1000))
    return SimpleNamespace(config=tiny_config(track=track), folder=folder, step=step, data=data, track=None)


def trained(step: int) -> dict[str, Any]:
    stamp = {"kind": "train", "step": step, "tokens": 128 * step, "flops": 1.0, "train_seconds": 1.0}
    return {**stamp, "loss": 3.0 - step / 10, "grad_norm": None, "lr": 1e-3, "step_ms": 5.0}


def test_tensorboard_takes_back_the_steps_after_a_checkpoint(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for begun, steps in ((0, (1, 2, 3, 4)), (2, (3, 4, 5))):
        state = state_of(tiny_config, tmp_path, "tensorboard", begun)
        with tracking.tracked(state, pytest.fail):
            for step in steps:
                state.track({**trained(step), "loss": step + 100.0 * bool(begun)})
    events = reader.EventAccumulator(str(tmp_path / trackers.TENSORBOARD_FOLDER))
    events.Reload()
    found = [(point.step, point.value) for point in events.Scalars("train/loss")]
    assert found == [(1, 1.0), (2, 2.0), (3, 103.0), (4, 104.0), (5, 105.0)]


def test_a_full_disk_costs_a_line_for_each_tracker(
    tiny_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """/dev/full in the place of their files: each write fails as on a full disk. Nothing else is printed."""
    pytest.importorskip("tensorboard")
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")

    def full(path: Any, mode: str, **options: Any) -> Any:
        return open("/dev/full", mode, **options)

    monkeypatch.setattr(trackers, "open", full, raising=False)
    said: list[str] = []
    state = state_of(tiny_config, tmp_path, "tensorboard,csv")
    with tracking.tracked(state, said.append):
        for step in range(50):
            state.track(trained(step))
    assert sorted(line.split()[2] for line in said) == ["csv", "tensorboard"]
    assert all("No space left on device" in line for line in said)
    assert capfd.readouterr() == ("", "")


def test_a_resumed_run_takes_back_what_came_after_its_checkpoint(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    for begun, steps in ((0, (1, 2, 3, 4)), (2, (3, 4, 5))):
        state = state_of(tiny_config, tmp_path, "csv", begun)
        with tracking.tracked(state, pytest.fail):
            for step in steps:
                state.track(trained(step))
    assert [row["step"] for row in read_csv(tmp_path)] == ["1", "2", "3", "4", "5"]


def test_a_finished_run_that_is_resumed_tells_its_result_once(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It measures its result again, which every tracker got again. Another result is told, and so is a new tracker."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    told: dict[str, list[float]] = {"wandb": [], "trackio": []}

    class Listening(Broken):
        def __init__(self, name: str) -> None:
            self.name = name

        def numbers(self, step: int, numbers: dict[str, float]) -> None:  # type: ignore[override]
            told[self.name] += [value for key, value in numbers.items() if key == "test/loss"]

        def flush(self) -> None:
            pass

        close = flush

    for name in told:
        monkeypatch.setitem(trackers.OPENERS, name, lambda *_, name=name: Listening(name))
    files, track = [], "csv,tensorboard,wandb"
    for begun, loss in ((0, 1 / 3), (2, 1 / 3), (2, 1 / 3), (2, 0.25), (2, 0.25)):
        state = state_of(tiny_config, tmp_path, track, begun)
        with tracking.tracked(state, pytest.fail):
            for step in (1, 2)[begun:]:
                state.track(trained(step))
            state.track({"kind": "result", "step": 2, "test_loss": loss, "test_bits_per_byte": 2 * loss})
        files.append((tmp_path / trackers.CSV_FILE).read_bytes())
        track = "csv,tensorboard,wandb,trackio"
    assert files[0] == files[1] == files[2]
    assert [row["test/loss"] for row in read_csv(tmp_path)] == ["", "", str(1 / 3), "0.25"]
    assert told == {"wandb": [1 / 3, 0.25], "trackio": [1 / 3, 0.25]}
    events = reader.EventAccumulator(str(tmp_path / trackers.TENSORBOARD_FOLDER))
    events.Reload()
    assert [point.value for point in events.Scalars("test/loss")] == [pytest.approx(1 / 3), 0.25]

    (tmp_path / tracking.RESULT_TOLD_FILE).write_text("damaged")
    for begun in (2, 1):  # a damaged record, and a run that has taken its last step again
        state = state_of(tiny_config, tmp_path, "wandb", begun)
        with tracking.tracked(state, pytest.fail):
            state.track({"kind": "result", "step": 2, "test_loss": 0.25, "test_bits_per_byte": 0.5})
    assert told["wandb"] == [1 / 3, 0.25, 0.25, 0.25]


def test_a_validation_that_is_repeated_is_tracked_once(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """It was cut short by a signal after its score, while stories were written."""
    folder = tmp_path / "run"
    folder.mkdir()
    config, data = set_up(replace(tiny_config(), model="nanogpt"), folder)
    told: list[tuple[str, int]] = []

    def scored() -> bool:
        path = folder / "metrics.jsonl"
        found = read_json_lines(path) if path.exists() else []
        return any((record["kind"], record["step"]) == ("eval", 6) for record in found)

    for stop in (scored, lambda: False):
        state = build_state(config, data, folder)
        load_newest_checkpoint(state)
        state.stop_waiting, state.track = stop, lambda record: told.append((record["kind"], record["step"]))
        list(train(state))
    assert state.finished
    assert told == [(one["kind"], one["step"]) for one in read_json_lines(folder / "metrics.jsonl")]


def test_a_resumed_run_that_is_killed_at_once_has_not_lost_its_lines(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Those of before were held in memory until the first new one came."""
    config = tiny_config()
    first = trackers.CsvFile(tmp_path, config, 0)
    first.numbers(1, {"step": 1, "train/loss": 2.5})
    first.close()
    killed = trackers.CsvFile(tmp_path, config, 1)
    assert [row["train/loss"] for row in read_csv(tmp_path)] == ["2.5"]
    killed.close()


class Broken:
    """A tracker that does as it is told to fail."""

    def __init__(self, *_: object) -> None:
        pass

    def numbers(self, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def text(self, *_: object) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        raise AssertionError("it was left out")


def no_login(*_: object) -> Any:
    raise SystemExit("not logged in\nrun the login command")


@pytest.mark.parametrize(
    ("opener", "why"),
    [(Broken, "No space left on device"), (no_login, "not logged in run the login command")],
)
def test_a_tracker_that_fails_costs_one_line(
    opener: Any,
    why: str,
    tiny_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run ends as it would have, and the other tracker has everything."""
    monkeypatch.setitem(trackers.OPENERS, "wandb", opener)
    said: list[str] = []
    state = state_of(tiny_config, tmp_path, "wandb,csv")
    with tracking.tracked(state, said.append):
        for step in range(3):
            state.track(trained(step))
    assert len(read_csv(tmp_path)) == 3
    assert said == [f"tracking with wandb has ended ({why}); the run goes on"] or (
        opener is Broken and why in said[0] and len(said) == 1
    )


def test_a_slow_tracker_does_not_slow_the_run(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    class Stuck(Broken):
        def numbers(self, *_: object) -> None:
            release.wait(PATIENCE)

        def close(self) -> None:
            pass

    monkeypatch.setitem(trackers.OPENERS, "csv", Stuck)
    monkeypatch.setattr(tracking, "QUEUE_LENGTH", 10)
    monkeypatch.setattr(tracking, "SECONDS_TO_CLOSE", 0.05)
    said: list[str] = []
    state = state_of(tiny_config, tmp_path, "csv")
    start = time.monotonic()
    with tracking.tracked(state, said.append):
        for step in range(200):
            state.track(trained(step))
    assert time.monotonic() - start < PATIENCE
    release.set()
    assert "did not end in time" in said[0]
    lost = re.search(r"was too slow: (\d+) records are missing", said[1])
    # of 200 records and the end, what the queue of 10 did not take
    assert lost and 188 <= int(lost[1]) <= 191


def test_a_missing_package_costs_one_line(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    said: list[str] = []
    state = state_of(tiny_config, tmp_path, "trackio")
    with tracking.tracked(state, said.append):
        state.track(trained(1))
    assert said == [
        "tracking with trackio has ended (the package trackio is not installed: "
        "pip install -c constraints.txt -e '.[track]' (in the checkout)); the run goes on"
    ]


def tracked_and_resumed(tiny_config: Callable[..., RunConfig], folder: Path, name: str) -> None:
    """Tell a tracker of steps 1 to 3, and, as a resumed run does, of 4 and 5; it complains of nothing.

    A loaded machine may take longer than the seconds that a run gives it.
    """
    for begun, steps in ((0, (1, 2, 3)), (3, (4, 5))):
        said: list[str] = []
        state = state_of(tiny_config, folder, name, begun)
        with tracking.tracked(state, said.append):
            for step in steps:
                state.track(trained(step))
        assert not said


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline file: a header of 7 bytes, and blocks of 32 KB with pieces that have one of 7 each."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := -place % 32768) and left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(record)
            record = b""


@pytest.mark.slow
def test_wandb_holds_the_numbers_of_a_run_that_was_resumed(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, in the run's folder. Slow: each session starts W&B's own program."""
    pytest.importorskip("wandb", reason="wandb is not installed: nanokimi[track]")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(tracking, "SECONDS_TO_CLOSE", PATIENCE)
    tracked_and_resumed(tiny_config, tmp_path / "run", "wandb")
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    records = [record for path in files for record in wandb_records(path)]
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert sorted((row["step"], row["train/loss"]) for row in rows) == [
        (step, pytest.approx(3.0 - step / 10)) for step in range(1, 6)
    ]
    identity = (tmp_path / "run" / trackers.WANDB_ID_FILE).read_text().strip()
    assert {record.run.run_id for record in records if record.WhichOneof("record_type") == "run"} == {
        identity
    }


@pytest.mark.slow
def test_trackio_holds_the_numbers_of_a_run_that_was_resumed(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder on this machine. Slow: it is imported with its web server."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio", reason="trackio is not installed: nanokimi[track]")
    monkeypatch.setattr(tracking, "SECONDS_TO_CLOSE", PATIENCE)
    tracked_and_resumed(tiny_config, tmp_path / "run", "trackio")
    with closing(sqlite3.connect(tmp_path / "trackio" / f"{trackers.PROJECT}.db")) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    assert [(name, step) for name, step, _ in rows] == [("run", step) for step in range(1, 6)]
    losses = [json.loads(metrics)["train/loss"] for _, _, metrics in rows]
    assert losses == [pytest.approx(3.0 - step / 10) for step in range(1, 6)]


def test_arms_of_a_comparison_are_tracked_and_a_study_refuses(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(tiny_config(max_steps=2, eval_every=2), arms={"NanoGPT": {"from": "nanogpt"}})
    (tmp_path / "tiny.yaml").write_text(config_text(config))
    words = ["--config", str(tmp_path / "tiny.yaml"), "--track", "csv"]
    cli.main(["compare", *words, "--out", str(tmp_path / "out")])
    run = tmp_path / "out" / "nanogpt" / "seed-7"
    assert math.isclose(float(read_csv(run)[-1]["test/loss"]), read_json(run / "result.json")["test_loss"])
    capsys.readouterr()
    assert cli.main(["sweep", *words, "--out", str(tmp_path / "sweep")]) == 2
    assert "--train.track has no effect with sweep" in capsys.readouterr().err
    for wrong in ("csv,tensorbord", "csv,csv"):
        assert cli.main(["train", "--track", wrong, "--data", str(tmp_path / "text.txt")]) == 2
        assert f"train.track is {wrong}: expected some of csv, tensorboard" in capsys.readouterr().err
