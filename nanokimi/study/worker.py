"""A worker of a study: one process that trains the jobs it is given, one after another."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanokimi.compare.arm_process import ORPHAN_SECONDS, unexpected
from nanokimi.config import RunConfig
from nanokimi.config.files import load_config
from nanokimi.errors import TrainingError, UserError
from nanokimi.runtime.c_compiler import say_nothing
from nanokimi.runtime.device import is_out_of_memory
from nanokimi.runtime.files import cannot_write
from nanokimi.runtime.plugins import name_plugin
from nanokimi.runtime.processes import ignore_signals
from nanokimi.runtime.text import one_line

if TYPE_CHECKING:
    from nanokimi.measure.evaluate import Evaluation
    from nanokimi.train.state import TrainState

SECONDS_BETWEEN_MESSAGES = 1.0
DIVERGED = "not finite"
KEPT = ("lr", "tokens", "batches_skipped", "device", "dtype")
"""Metrics in a line of results.jsonl besides those of a study's tables (STUDY_KEYS)."""


def serve_jobs(connection: Connection, jobs_folder: str, plugins: list[str]) -> None:
    """Serve the parent until it ends. `plugins` are the user's files that the command named."""
    ignore_signals()
    say_nothing()  # of missing kernels: the parent does
    for plugin in plugins:
        name_plugin(plugin)
    try:
        while True:
            kind, key, order, config = connection.recv()
            if kind == "job":
                connection.send(run_job(connection, Path(jobs_folder) / key, order, config))
            else:
                connection.send(("stopped", None))
    except (EOFError, ConnectionError):
        pass  # the parent is gone


@dataclass(frozen=True)
class Order:
    """What to do for a job besides training it."""

    purpose: str
    """ "tune": score only the validation part. "seed": score the test part too."""
    audited: bool


def run_job(connection: Connection, folder: Path, order: Order, config: RunConfig | None) -> tuple[str, Any]:
    """Run a job with `config` or the folder's own; returns ("done", numbers), ("stopped", None) or ("failed", why).

    The numbers include the processor's seconds since the job was started or resumed, from which a search's cost is
    added up.
    """
    started = time.process_time()
    kind, found = attempt(connection, folder, order, config)
    if kind == "done":
        found["cpu_seconds"] = round(time.process_time() - started, 3)
    return kind, found


def attempt(connection: Connection, folder: Path, order: Order, config: RunConfig | None) -> tuple[str, Any]:
    """Train a job; errors become an answer of the same form as that of `run_job`."""
    try:
        return train_job(connection, folder, order, config or load_config(str(folder / "config.yaml")))
    except TrainingError as error:
        if DIVERGED in str(error):
            return "done", {"val_loss": None, "diverged": True, "why": str(error)[:200]}
        return "failed", str(error)
    except UserError as error:
        return "failed", str(error)
    except (EOFError, ConnectionError):
        raise  # the parent is gone, and what was trained is saved
    except OSError as error:
        return "failed", cannot_write(error, folder)
    except Exception as error:
        if is_out_of_memory(error):  # outside of a training step, where there is nothing smaller to try
            return "failed", one_line(error) or "out of memory"
        return "failed", unexpected(error, folder)


def train_job(connection: Connection, folder: Path, order: Order, config: RunConfig) -> tuple[str, Any]:
    """Train from the newest checkpoint, if there is one, to the end or until the parent says to stop."""
    import torch

    from nanokimi.data.store import open_prepared
    from nanokimi.measure.evaluate import Cancelled
    from nanokimi.runtime.device import release_memory
    from nanokimi.runtime.locks import only_process
    from nanokimi.train.checkpoint import load_newest_checkpoint
    from nanokimi.train.loop import train
    from nanokimi.train.run_folder import find_data, keep_plugins
    from nanokimi.train.state import build_state, total_steps

    with only_process(folder, ORPHAN_SECONDS):
        keep_plugins(config, folder)
        # Memory that the previous job left would count as this one's.
        gc.collect()
        release_memory(torch.device(config.train.device))
        state = build_state(config, open_prepared(find_data(folder)), folder)
        state.only_final_score = True
        state.stop_waiting = connection.poll
        if (folder / "checkpoints").exists():
            load_newest_checkpoint(state, log=lambda line: None)
        sent = time.monotonic()
        for record in train(state):
            if record["kind"] == "train" and time.monotonic() - sent > SECONDS_BETWEEN_MESSAGES:
                connection.send(("progress", state.step / total_steps(state)))
                sent = time.monotonic()
        if not state.finished:
            connection.recv()  # the request to stop
            return "stopped", None
        try:
            return "done", measure(state, order, connection.poll)
        except Cancelled:
            connection.recv()
            return "stopped", None


def measure(state: TrainState, order: Order, cancelled: Callable[[], bool]) -> dict[str, Any]:
    """What results.jsonl keeps of a trained model. Raises Cancelled if scoring the test part is interrupted."""
    from nanokimi.report.metrics import STUDY_KEYS
    from nanokimi.runtime.files import describe_environment
    from nanokimi.train.audits import audit_run
    from nanokimi.train.metrics import METRICS, ended_run
    from nanokimi.train.result import score_test

    assert state.last_evaluation is not None, "train() ends with a validation"
    scores = state.last_evaluation.record()
    tested = None if order.purpose == "tune" else score_test(state, cancelled)
    run = ended_run(state, tested or state.last_evaluation)
    kept = {key: METRICS[key](run) for key in METRICS if key in (*KEPT, *STUDY_KEYS)}
    line = {
        **{key: scores[key] for key in ("val_loss", "val_bits_per_byte", "val_bits_per_char")},
        **({} if tested is None else tested_line(state, tested)),
        **kept,
        "train_seconds": round(kept["train_seconds"], 3),
        "ms_per_step": round(kept["ms_per_step"], 3),
        "flops": state.flops,
        "commit": describe_environment()["commit"],
    }
    if order.audited:
        verdict = audit_run(state.model, state.config, state.data)
        line["audit"] = {"causal": verdict.causal, "where": verdict.where, "verdict": verdict.verdict}
    return line


def tested_line(state: TrainState, scores: Evaluation) -> dict[str, Any]:
    """The entries of a line about the test part: scores, and the losses by block."""
    from nanokimi.study.jobs import in_blocks
    from nanokimi.train.result import floor_gaps

    kept = ("test_loss", "test_perplexity", "test_bits_per_byte", "test_bits_per_char")
    return {
        **{name: value for name, value in scores.record().items() if name in kept},
        "floor_gap": floor_gaps(state.data, scores, state.config.train.context_length)["floor_gap"],
        "block_nats": in_blocks(scores.window_nats, scores.window_tokens)[0],
    }
