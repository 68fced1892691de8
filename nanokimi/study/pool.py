"""Workers that run jobs, one on each free core or GPU, until all are done or a signal comes.

A worker starts once and trains many models one after another, since starting Python and torch takes longer than a
small run's validation. An interruption (a signal, a crash, a kill) loses at most the steps since the last checkpoint.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import connection as connections
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from nanokimi.config.files import save_config
from nanokimi.data.store import PreparedData
from nanokimi.errors import TrainingError
from nanokimi.kernels.accelerate import compile_ahead
from nanokimi.report.units import seconds as in_time
from nanokimi.runtime.files import append_json_line
from nanokimi.runtime.interrupts import Interrupted, on_first_signal
from nanokimi.runtime.plugins import named_plugins
from nanokimi.runtime.processes import start_process
from nanokimi.runtime.text import visible_line
from nanokimi.study.jobs import JOBS_FOLDER, RESULTS_FILE, Job, Line, job_key, read_results
from nanokimi.study.worker import Order, serve_jobs
from nanokimi.train.run_folder import CONFIG_FILE, keep_plugins

POLL_SECONDS = 0.25
LEFT_BEHIND = ("checkpoints", "model.safetensors", ".lock", "nonfinite")


def free_slots(device: str) -> list[str | None]:
    """One entry for each job that can run at a time: None for a core, the number of a GPU. "cuda" means all GPUs."""
    if device.startswith("cuda"):
        import torch

        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        known = named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
        index = device.partition(":")[2]
        return [known[int(index)]] if index else list(known)
    if device.startswith("mps"):
        return [None]
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [None] * max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


class Worker:
    """The parent's end of one worker process."""

    def __init__(self, jobs_folder: Path, gpu: str | None) -> None:
        self.jobs_folder, self.gpu = jobs_folder, gpu
        self.job: Job | None = None
        self.key, self.done, self.started = "", 0.0, 0.0
        self.fresh = True  # its job was begun here, and not before an interruption
        only = {"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else None  # the worker sees no other
        self.process, self.connection = start_process(
            serve_jobs, str(jobs_folder), named_plugins(), environment=only
        )

    def start(self, job: Job, key: str) -> None:
        """Give the worker a job, in a folder that is made if it does not exist."""
        folder = self.jobs_folder / key
        folder.mkdir(parents=True, exist_ok=True)
        fresh = not (folder / CONFIG_FILE).exists()  # otherwise it is resumed with its saved configuration
        if fresh:
            save_config(job.config, folder / CONFIG_FILE)
            keep_plugins(job.config, folder)  # the worker reads the file again and refuses changed content
        self.job, self.key, self.done, self.started = job, key, 0.0, time.monotonic()
        self.fresh = fresh
        self.send("job", key, Order(job.purpose, job.audited), job.config if fresh else None)

    def send(self, *request: Any) -> None:
        """Send a request. That the process is gone is found out when its answer is received."""
        with suppress(OSError):
            self.connection.send(request)

    def death(self) -> str:
        """Why the process is gone."""
        self.process.join()
        code = self.process.exitcode
        return f"its process ended with exit code {code}{' (out of memory?)' if code == -9 else ''}"


class Pool:
    """Runs the jobs of one study. It is a context manager, so that its workers serve several rounds of jobs."""

    def __init__(
        self, study: Path, data: PreparedData, device: str, workers: int | None = None, keep: bool = False
    ) -> None:
        self.study, self.data, self.keep = study, data, keep
        slots = free_slots(device)
        self.slots = slots if workers is None else [slots[i % len(slots)] for i in range(workers)]
        self.workers: list[Worker] = []
        self.results = read_results(study)
        self.failures: list[str] = []
        self.waiting: list[tuple[str, Job]] = []
        self.took: list[tuple[Job, float]] = []  # seconds of each job that this pool has begun and finished
        self.signals: list[int] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.process.kill()

    def key(self, job: Job) -> str:
        """The job's name."""
        return job_key(job.config, self.data.fingerprint)

    def result(self, job: Job) -> Line:
        """The line of a job that has finished."""
        return self.results[self.key(job)]

    def is_missing(self, key: str, job: Job) -> bool:
        """Whether a job has no line, or its line lacks the audit or the losses on the test part that it should have."""
        line = self.results.get(key)
        if line is None or line["val_loss"] is None:
            return line is None
        lacks_test = job.purpose == "seed" and "test_loss" not in line
        return lacks_test or (job.audited and "audit" not in line)

    def run(self, jobs: Sequence[Job]) -> list[Line]:
        """Run the jobs that have no result yet, and return the lines of all, in order.

        Raises:
            Interrupted: a signal came, and running jobs were saved.
            TrainingError: some jobs failed, and all others are done.
        """
        wanted = {self.key(job): job for job in reversed(jobs)}
        waiting = [
            (key, wanted[key])
            for key in dict.fromkeys(map(self.key, jobs))
            if self.is_missing(key, wanted[key])
        ]
        total, self.failures, self.waiting = len(waiting), [], waiting
        for device, dtype in {(job.config.train.device, job.config.train.dtype) for _, job in waiting}:
            compile_ahead(device, dtype)
        while len(self.workers) < min(len(self.slots), total):
            self.workers.append(Worker(self.study / JOBS_FOLDER, self.slots[len(self.workers)]))
        with on_first_signal(self.signals.append):
            while waiting or any(worker.job for worker in self.workers):
                for worker in self.workers:
                    if waiting and worker.job is None and not self.signals:
                        key, job = waiting.pop(0)
                        worker.start(job, key)
                if self.signals:
                    self.stop()
                self.listen(total, len(waiting))
        if self.failures:
            raise TrainingError(
                f"{len(self.failures)} of {total} runs failed, the first because {self.failures[0]}; the others are "
                f"kept in {self.study / RESULTS_FILE}: repeat the command to try again"
            )
        return [self.result(job) for job in jobs]

    def stop(self) -> None:
        """Make every running job save itself and stop."""
        for worker in self.workers:
            if worker.job is not None:
                worker.send("stop", "", None, None)
        for worker in self.workers:
            while worker.job is not None:
                self.receive(worker, 0, 0)
        raise Interrupted(self.signals[0], f"interrupted; repeat the command to go on in {self.study}")

    def listen(self, total: int, waiting: int) -> None:
        """Receive the messages of all workers that have one."""
        busy = {worker.connection: worker for worker in self.workers if worker.job is not None}
        for ready in connections.wait(list(busy), POLL_SECONDS):
            self.receive(busy[ready], total, waiting)  # type: ignore[index]

    def receive(self, worker: Worker, total: int, waiting: int) -> None:
        """Receive one message of one worker."""
        assert worker.job is not None
        try:
            kind, content = worker.connection.recv()
        except (EOFError, OSError):
            self.failures.append(f"{worker.job.arm}, seed {worker.job.config.seed}: {worker.death()}")
            self.workers[self.workers.index(worker)] = Worker(worker.jobs_folder, worker.gpu)
            worker.job = None
            return
        if kind == "progress":
            worker.done = content
            return
        job, worker.job = worker.job, None
        if kind == "failed":
            self.failures.append(f"{job.arm}, seed {job.config.seed}: {content}")
            print(f"nanokimi: {visible_line(self.failures[-1])}", file=sys.stderr)
        elif kind == "done":
            seconds = time.monotonic() - worker.started
            if worker.fresh or not self.took:
                self.took.append((job, seconds))
            self.record(job, worker.key, content)
            self.show(job, content, seconds, total, waiting)

    def record(self, job: Job, key: str, found: dict[str, Any]) -> None:
        """Write a finished job's line, then remove the files that are no longer needed."""
        head = {"kind": "run", "key": key, "arm": job.arm, "purpose": job.purpose, "changes": job.changes}
        line = {**head, "model": job.config.model, "seed": job.config.seed, **found}
        append_json_line(self.study / RESULTS_FILE, line)
        self.results[key] = line
        folder = self.study / JOBS_FOLDER / key
        for name in LEFT_BEHIND if not self.keep else LEFT_BEHIND[2:]:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)

    def show(self, job: Job, line: Line, seconds: float, total: int, waiting: int) -> None:
        """Print a line of progress."""
        running = sum(worker.job is not None for worker in self.workers)
        loss = "diverged" if line["val_loss"] is None else f"{line['val_loss']:.4f}"
        place = f"{total - waiting - running} of {total}"
        lr = f"lr {job.config.family.optim.lr:.3g}"
        print(
            f"{place}: {visible_line(job.arm)}, {lr}, seed {job.config.seed}: {loss} ({seconds:.1f} s); "
            f"about {in_time(self.seconds_left())} left",
            file=sys.stderr,
            flush=True,
        )

    def seconds_left(self) -> float:
        """Seconds until the jobs that run and wait have ended, as if each began on the worker that is free first."""
        free = [
            0.0 if worker.job is None else (1 - worker.done) * expected_seconds(worker.job, self.took)
            for worker in self.workers
        ]
        for _, job in self.waiting:
            free.sort()
            free[0] += expected_seconds(job, self.took)
        return max(free, default=0.0)


def expected_seconds(job: Job, took: Sequence[tuple[Job, float]]) -> float:
    """Seconds that a job will take, by those of others: of its arm, purpose and steps; else of its arm; else of all.

    Of those with other numbers of steps, the seconds per step count.
    """
    steps = job.config.train.max_steps or 1
    same_arm = [(one, seconds) for one, seconds in took if one.arm == job.arm]
    same_kind = [
        seconds
        for one, seconds in same_arm
        if (one.purpose, one.config.train.max_steps or 1) == (job.purpose, steps)
    ]
    if same_kind:
        return sum(same_kind) / len(same_kind)
    alike = same_arm or took
    taken = sum(one.config.train.max_steps or 1 for one, _ in alike)
    return steps * sum(seconds for _, seconds in alike) / max(taken, 1)
