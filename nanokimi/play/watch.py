"""A run in progress in another process, followed by reading what its records have gained."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from nanokimi.config import TrainConfig
from nanokimi.config.files import load_config
from nanokimi.data.metadata import read_metadata
from nanokimi.errors import UserError
from nanokimi.play.places import RESULT_FILE, metrics_of
from nanokimi.train.arm_order import in_order
from nanokimi.train.run_folder import CONFIG_FILE, find_data

MOST_POINTS = 8192
"""Losses that are kept of a run; beyond that, every second one is dropped."""
MOST_FOLLOWED = 64
MOST_BYTES_AT_ONCE = 1 << 26
BYTES_COMPARED = 512
"""Of what was read last, to see whether the file is still the one that was read: more than a record's times take."""
SILENT_SECONDS = 120.0


@dataclass
class Progress:
    """What is known of a run."""

    name: str
    seed: int
    train: TrainConfig
    train_tokens: int | None
    """Tokens of the training text, if they are known."""
    floor: float | None
    """Entropy of the validation text in nats per token, if it is known."""
    step: int = 0
    flops: float = 0.0
    train_seconds: float = 0.0
    losses: list[tuple[float, float]] = field(default_factory=list)
    val_losses: list[tuple[float, float]] = field(default_factory=list)
    step_ms: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    memory_bytes: int = 0
    sample: tuple[int, str, str] | None = None
    """Step, prompt and text of the newest story."""
    event: str = ""
    finished: bool = False
    written: float = 0.0
    """When the run last wrote, as Unix time."""

    @property
    def state(self) -> str:
        """In words."""
        if self.finished:
            return "finished"
        silent = time.time() - self.written
        return "in progress" if silent < SILENT_SECONDS else f"no news for {in_words(silent)}"

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step."""
        return self.train.batch_size * self.train.context_length

    @property
    def total_steps(self) -> float | None:
        """Steps that the budget allows at the costs so far; None if that is not known yet."""
        train = self.train
        if train.max_steps is not None:
            return train.max_steps
        if train.max_tokens is not None:
            return train.max_tokens / self.tokens_per_step
        if train.max_epochs is not None:
            return (
                None
                if self.train_tokens is None
                else train.max_epochs * self.train_tokens / self.tokens_per_step
            )
        if train.max_flops is not None:
            return self.step * train.max_flops / self.flops if self.flops else None
        return self.step * (train.max_seconds or 0) / self.train_seconds if self.train_seconds else None

    @property
    def tokens_per_second(self) -> float | None:
        """Training speed over the last steps."""
        return self.tokens_per_step / median(self.step_ms) * 1e3 if self.step_ms else None

    @property
    def seconds_left(self) -> float | None:
        """Training time left at that speed; None if it is not known."""
        if self.finished or self.total_steps is None or not self.step_ms:
            return None
        return max(self.total_steps - self.step, 0) * median(self.step_ms) / 1e3

    def take(self, record: dict[str, Any]) -> None:
        """One more record."""
        kind, step = record["kind"], int(record.get("step", self.step))
        self.step = max(self.step, step)
        if kind == "train":
            self.flops, self.train_seconds = float(record["flops"]), float(record["train_seconds"])
            self.losses.append((step, float(record["loss"])))
            if len(self.losses) > MOST_POINTS:
                self.losses = self.losses[::2]
            self.step_ms.append(float(record["step_ms"]))
            self.memory_bytes = int(record["memory_bytes"])
        elif kind == "eval":
            self.val_losses.append((step, float(record["val_loss"])))
        elif kind == "sample":
            self.sample = (step, str(record["prompt"]), str(record["text"]))
        elif kind == "event":
            self.event = str(record.get("detail", ""))


class Follower:
    """Reads the records of one run, each once."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset, self.last = path, 0, b""
        self.progress = begun(path.parent)

    def read(self) -> Progress:
        """What is known now. A run that was resumed from an earlier step, or started anew, is read again.

        It may have become longer than it was before anybody looks again, so its size does not tell.
        """
        with open(self.path, "rb") as file:
            file.seek(self.offset - len(self.last))
            if file.read(len(self.last)) != self.last:
                self.offset, self.last, self.progress = 0, b"", begun(self.path.parent)
            file.seek(self.offset)
            content = file.read(MOST_BYTES_AT_ONCE)
        whole = content.rfind(b"\n") + 1  # the last line may still be in writing
        self.offset += whole
        self.last = (self.last + content[:whole])[-BYTES_COMPARED:]
        for line in content[:whole].splitlines():
            try:
                record = json.loads(line)
                if math.isfinite(float(record.get("loss", 0)) + float(record.get("val_loss", 0))):
                    self.progress.take(record)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                continue  # a line that a crash has cut, or that is no record
        self.progress.written = self.path.stat().st_mtime
        self.progress.finished = (self.path.parent / RESULT_FILE).is_file()
        return self.progress


class Watcher:
    """The followers of all runs that visitors watch; many visitors of one run share its follower."""

    def __init__(self) -> None:
        self.followers: dict[Path, Follower] = {}
        self.lock = threading.Lock()

    def look(self, folder: Path) -> list[Progress]:
        """What is known of the runs in a folder, in the order of its arms. Raises UserError if it cannot be read."""
        with self.lock:
            found = []
            for path in in_order(folder, metrics_of(folder)):
                try:
                    if path not in self.followers:
                        self.followers[path] = Follower(path)
                        for old in list(self.followers)[:-MOST_FOLLOWED]:
                            del self.followers[old]
                    found.append(self.followers[path].read())
                except OSError as error:
                    raise UserError(f"{path.parent.name} cannot be read ({error.strerror}).") from None
            return found


def begun(folder: Path) -> Progress:
    """A run of which nothing has been read yet but its configuration."""
    config = load_config(str(folder / CONFIG_FILE))
    try:
        metadata = read_metadata(find_data(folder) / "data.json")
    except UserError:
        metadata = {}
    nats = metadata.get("val_floor_nats")
    floor = None if nats is None else nats / metadata["val_tokens"]
    return Progress(config.title, config.seed, config.train, metadata.get("train_tokens"), floor)


def in_words(seconds: float) -> str:
    """A length of time: 45 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def shared_floor(runs: Sequence[Progress]) -> float | None:
    """The floor, if all runs have the same one."""
    floors = {run.floor for run in runs}
    return floors.pop() if len(floors) == 1 else None
