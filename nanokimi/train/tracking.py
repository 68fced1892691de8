"""`--track`: numbers to TensorBoard, Weights & Biases, Trackio or a CSV file, by nanoGPT's and nanochat's names.

A thread of its own writes them. The run never waits for it: a record that does not fit into the queue is dropped, and a
tracker that fails (a full disk, no login, a package that is missing) is left out with one line.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from operator import methodcaller

from nanokimi.errors import UserError
from nanokimi.runtime.files import read_json, write_json
from nanokimi.runtime.text import one_line
from nanokimi.train.state import Record, TrainState
from nanokimi.train.trackers import OPENERS, Backend

RESULT_TOLD_FILE = "tracked-result.json"
"""For each tracker, the numbers of the result that it has."""
QUEUE_LENGTH = 10_000
SECONDS_TO_CLOSE = 15.0
"""What is not written by then, after the end of a run, is lost."""


def metrics_of(record: Record, state: TrainState) -> dict[str, float]:
    """The numbers of a record by the names that nanoGPT and nanochat give them; empty for kinds that have none.

    nanoGPT: iter, train/loss, val/loss, lr. nanochat: step, train/loss, train/lrm, train/dt (seconds),
    train/tok_per_sec, train/epoch, val/bpb, total_training_flops, total_training_time. Ours: train/grad_norm,
    test/loss, test/bpb. Theirs also have mfu, a share of the peak of a GPU: the peak of this machine is not known.
    """
    train, kind, step = state.config.train, record["kind"], record["step"]
    found: dict[str, float | None] = {}
    if kind == "train":
        tokens = train.batch_size * train.context_length
        seconds = record["step_ms"] / 1e3
        found = {
            "train/loss": record["loss"],
            "train/grad_norm": record["grad_norm"],
            "train/lrm": record["lr"] / state.config.family.optim.lr,
            "train/dt": seconds,
            "train/tok_per_sec": tokens / seconds if seconds > 0 else None,
            "train/epoch": record["tokens"] / max(len(state.data.train_ids), 1),
            "lr": record["lr"],
            "total_training_flops": record["flops"],
            "total_training_time": record["train_seconds"],
        }
    elif kind == "eval":
        found = {"val/loss": record["val_loss"], "val/bpb": record["val_bits_per_byte"]}
    elif kind == "result":
        found = {"test/loss": record["test_loss"], "test/bpb": record["test_bits_per_byte"]}
    numbers = {name: float(value) for name, value in found.items() if value is not None}
    return {"step": step, "iter": step, **numbers} if numbers else {}


class Tracking:
    """The queue, the thread, and the trackers that still work."""

    def __init__(self, state: TrainState, note: Callable[[str], None]) -> None:
        self.state, self.note = state, note
        self.names = [name for name in state.config.train.track.split(",") if name]
        self.begun_after = state.step
        self.queue: queue.Queue[Record | None] = queue.Queue(QUEUE_LENGTH)
        self.dropped = 0
        self.complaints: queue.SimpleQueue[str] = queue.SimpleQueue()  # said by the run's own thread
        self.thread = threading.Thread(target=self._work, name="nanokimi tracks", daemon=True)

    def __call__(self, record: Record) -> None:
        """Hand a record over; never waits."""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1
        self.say()

    def say(self) -> None:
        """Pass on what the trackers complained of."""
        while not self.complaints.empty():
            self.note(self.complaints.get())

    def close(self) -> None:
        """Let the thread write what it has, for at most SECONDS_TO_CLOSE."""
        try:
            self.queue.put_nowait(None)
        except queue.Full:
            self.dropped += 1
        self.thread.join(SECONDS_TO_CLOSE)
        self.say()
        if self.thread.is_alive():
            self.note(
                f"tracking with {', '.join(self.names)} did not end in time: its last numbers are missing"
            )
        if self.dropped:
            self.note(
                f"tracking with {', '.join(self.names)} was too slow: {self.dropped} records are missing"
            )

    def _work(self) -> None:
        backends: dict[str, Backend] = {}
        for name in self.names:
            self._guarded(name, backends, partial(self._open, name, backends))
        while (record := self.queue.get()) is not None:
            step, numbers = record["step"], metrics_of(record, self.state)
            if record["kind"] == "sample":
                self._each(backends, methodcaller("text", step, record["prompt"] + record["text"]))
            elif record["kind"] == "result":
                self._tell_result(backends, step, numbers)
            elif numbers:
                self._each(backends, methodcaller("numbers", step, numbers))
            if self.queue.empty():
                self._each(backends, methodcaller("flush"))
        self._each(backends, methodcaller("close"))

    def _tell_result(self, backends: dict[str, Backend], step: int, numbers: dict[str, float]) -> None:
        """Tell the result to each tracker that does not have it: a finished run that is resumed finds it again."""
        path, told = self.state.folder / RESULT_TOLD_FILE, {}
        if self.begun_after == step and path.is_file():  # else the trackers may have taken it back
            with suppress(UserError, TypeError, ValueError):  # it is damaged
                told = dict(read_json(path))
        for name, backend in list(backends.items()):
            if told.get(name) != numbers:
                self._guarded(name, backends, partial(backend.numbers, step, numbers))
        self._each(backends, methodcaller("flush"))
        with suppress(OSError):  # then it may be told twice
            write_json(path, {**told, **dict.fromkeys(backends, numbers)})

    def _open(self, name: str, backends: dict[str, Backend]) -> None:
        backends[name] = OPENERS[name](self.state.folder, self.state.config, self.begun_after)

    def _each(self, backends: dict[str, Backend], act: Callable[[Backend], object]) -> None:
        for name, backend in list(backends.items()):
            self._guarded(name, backends, partial(act, backend))

    def _guarded(self, name: str, backends: dict[str, Backend], act: Callable[[], object]) -> None:
        """Act; a tracker that fails is left out from now on. Some try to end the process when they cannot log in."""
        try:
            act()
        except BaseException as error:  # this is not the main thread, so Ctrl-C does not come here
            backends.pop(name, None)
            why = (one_line(error) or type(error).__name__)[:300]
            self.complaints.put(f"tracking with {name} has ended ({why}); the run goes on")


@contextmanager
def tracked(state: TrainState, note: Callable[[str], None]) -> Iterator[None]:
    """Tell the trackers that `train.track` names what the block records; `note` gets a line about one that fails."""
    if not state.config.train.track:
        yield
        return
    tracking = Tracking(state, note)
    state.track = tracking
    tracking.thread.start()
    try:
        yield
    finally:
        tracking.close()
