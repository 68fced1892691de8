"""The trackers behind `--track`: each is opened for a run's folder and told numbers and texts by step."""

from __future__ import annotations

import csv
import io
import os
import platform
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from nanokimi.config import RunConfig
from nanokimi.config.parsing import settings
from nanokimi.runtime.extras import how_to_install
from nanokimi.runtime.files import write_atomic

CSV_FILE, TENSORBOARD_FOLDER, WANDB_ID_FILE = "track.csv", "tensorboard", "wandb-id.txt"
PROJECT = "nanokimi"
COLUMNS = (
    *("step", "iter", "train/loss", "val/loss", "val/bpb", "test/loss", "test/bpb", "lr", "train/lrm"),
    *("train/grad_norm", "train/dt", "train/tok_per_sec", "train/epoch"),
    *("total_training_flops", "total_training_time"),
)


class Backend(Protocol):
    """A tracker that is open. Any of its methods may raise anything."""

    def numbers(self, step: int, numbers: dict[str, float]) -> None:
        """The metrics of a step, by name."""

    def text(self, step: int, text: str) -> None:
        """A story written at a step."""

    def flush(self) -> None:
        """Make what was told visible."""

    def close(self) -> None:
        """The run has ended or stopped."""


class CsvFile:
    """track.csv: a line for each record, with the columns that it has. A resumed run's later lines are dropped."""

    def __init__(self, folder: Path, config: RunConfig, begun_after: int) -> None:
        path = folder / CSV_FILE
        kept: list[list[str]] = []
        if begun_after and path.is_file():
            with open(path, encoding="utf-8", newline="") as old:
                kept = [
                    row
                    for row in csv.reader(old)
                    if row and row[0].isdecimal() and int(row[0]) <= begun_after
                ]
        begun = io.StringIO(newline="")
        csv.writer(begun).writerows([list(COLUMNS), *kept])
        write_atomic(path, begun.getvalue())  # a resumed run that is killed now has not lost its lines
        self.file = open(path, "a", encoding="utf-8", newline="")
        self.writer = csv.writer(self.file)

    def numbers(self, step: int, numbers: dict[str, float]) -> None:
        """A line."""
        self.writer.writerow([str(numbers.get(name, "")) for name in COLUMNS])

    def text(self, step: int, text: str) -> None:
        """Stories are in the run's `samples` folder."""

    def flush(self) -> None:
        """Write the lines so far."""
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class TensorBoard:
    """Event files in the folder `tensorboard`: `tensorboard --logdir runs` shows the runs side by side.

    Written here with TensorBoard's record writer, because torch's SummaryWriter writes in yet another thread, which
    ends with a traceback on the terminal if the disk is full.
    """

    def __init__(self, folder: Path, config: RunConfig, begun_after: int) -> None:
        require_package("tensorboard")
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        self.make_event, self.summary = Event, summary
        (folder / TENSORBOARD_FOLDER).mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{platform.node()}.{os.getpid()}"
        # A reader takes files in the order of their names, and the later file's events after the earlier's.
        self.records: Any = RecordWriter(open(folder / TENSORBOARD_FOLDER / name, "wb"))
        self._write(file_version="brain.Event:2")
        if begun_after:  # steps after the checkpoint that was resumed are taken back
            self._write(step=begun_after + 1, session_log=SessionLog(status=SessionLog.START))
        lines = "".join(f"    {key}: {value}\n" for key, value in settings(config).items())
        self._write(step=begun_after, summary=summary.text("config", lines))

    def _write(self, **content: Any) -> None:
        self.records.write(self.make_event(wall_time=time.time(), **content).SerializeToString())

    def numbers(self, step: int, numbers: dict[str, float]) -> None:
        """A point of each curve; the step itself is none."""
        for name, value in numbers.items():
            if name not in ("step", "iter"):
                self._write(step=step, summary=self.summary.scalar(name, value))

    def text(self, step: int, text: str) -> None:
        """A story, as a page of text."""
        self._write(step=step, summary=self.summary.text("sample", text))

    def flush(self) -> None:
        """Write the events so far."""
        self.records.flush()

    def close(self) -> None:
        """Close the event file."""
        self.records.close()


class WandB:
    """Weights & Biases, offline unless WANDB_MODE says otherwise: `wandb sync` sends an offline run later."""

    def __init__(self, folder: Path, config: RunConfig, begun_after: int) -> None:
        require_package("wandb")
        import wandb

        mode = os.environ.get("WANDB_MODE", "offline")
        if mode == "online" and not wandb.login(prompt=False):  # it would ask for a key on the terminal
            raise RuntimeError("not logged in: run `wandb login`, or leave WANDB_MODE out to track offline")
        known = folder / WANDB_ID_FILE
        identity = known.read_text(encoding="utf-8").strip() if known.is_file() and begun_after else None
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run_name(folder),
            dir=str(folder),
            id=identity,
            resume="allow",
            mode=mode,
            config=settings(config),
            settings=wandb.Settings(silent=True, console="off", login_timeout=10, init_timeout=60),
        )
        write_atomic(known, f"{self.run.id}\n")

    def numbers(self, step: int, numbers: dict[str, float]) -> None:
        """A row of the history; without W&B's own step, because a step has several rows (training, validation)."""
        self.run.log(numbers)

    def text(self, step: int, text: str) -> None:
        """Stories are in the run's `samples` folder."""

    def flush(self) -> None:
        """W&B sends by itself."""

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


class Trackio:
    """Trackio's database on this machine: `trackio show --project nanokimi` opens its page."""

    def __init__(self, folder: Path, config: RunConfig, begun_after: int) -> None:
        require_package("trackio")
        import trackio

        self.run: Any = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=run_name(folder),
            config=settings(config),
            resume="allow" if begun_after else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def numbers(self, step: int, numbers: dict[str, float]) -> None:
        """A row at the step."""
        self.run.log({name: value for name, value in numbers.items() if name != "step"}, step=step)

    def text(self, step: int, text: str) -> None:
        """Stories are in the run's `samples` folder."""

    def flush(self) -> None:
        """Trackio writes by itself."""

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


OPENERS: dict[str, Callable[[Path, RunConfig, int], Backend]] = {
    "csv": CsvFile,
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}


def run_name(folder: Path) -> str:
    """The run's folder below `runs`, such as "compare-tales-1/nanokimi/seed-1", so that arms do not share a name."""
    parts = folder.resolve().parts
    inside = parts[-3:] if parts[-1].startswith("seed-") else parts[-1:]
    return "/".join(inside)


def require_package(name: str) -> None:
    """Raises ImportError with what to install."""
    if find_spec(name) is None:
        raise ImportError(f"the package {name} is not installed: {how_to_install('track')}")
