"""Many small runs: what a job is, how it is named by its content, and the file of results behind every table.

A study's folder holds `jobs/` (configuration and data that all share, and one folder for each job) and
`results.jsonl`, one line for each finished run. A job's name is the hash of what decides its numbers, and of nothing
else. So a run that has a line is never repeated, even if another machine or folder made the line.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nanokimi.config import FREE_WHEN_RESUMED, RunConfig
from nanokimi.config.parsing import settings
from nanokimi.config.rules_variant import is_plugin
from nanokimi.data.batches import scored_windows
from nanokimi.data.store import PreparedData
from nanokimi.runtime.files import read_json_lines
from nanokimi.runtime.plugins import plugin_hashes

JOBS_FOLDER, RESULTS_FILE = "jobs", "results.jsonl"
NO_EFFECT = FREE_WHEN_RESUMED - {"train.on_nonfinite"} | {
    "train.eval_every",
    "train.eval_batch_size",
    "train.telemetry_every",
    "train.sample_every",
}
"""Settings of the train group that do not change a job's numbers, because it is scored once, at its end."""
STRETCHES = 100
"""The losses on the test part are kept as sums over this many blocks: enough for a bootstrap, and small."""

Line = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One training run of a study."""

    arm: str
    """The name in the tables."""
    config: RunConfig
    """Resolved, with the model and seed set; on a CPU it uses one thread."""
    purpose: str
    """ "tune": for choosing settings, on the validation part alone. "seed": for the report, on the test part."""
    changes: dict[str, Any] = field(default_factory=dict)
    """How the arm differs from the study's configuration, for the record."""
    audited: bool = False
    """Whether the trained model is audited."""


def as_job_config(config: RunConfig, seed: int) -> RunConfig:
    """`config` with one thread, one seed, one evaluation at the end and four checkpoints."""
    steps = config.train.max_steps
    assert steps is not None, "a study's budget is in steps"
    device = "cpu" if config.train.device == "cpu" else config.train.device.split(":")[0]
    train = replace(
        config.train,
        threads=1,
        device=device,
        eval_every=steps,
        save_every=-(-steps // 4),
        keep_checkpoints=1,
    )
    return replace(config, seed=seed, train=train)


def job_key(config: RunConfig, fingerprint: dict[str, str]) -> str:
    """The job's name: a hash of its settings that are not the defaults, and of the data.

    It leaves out the other arms, paths, and settings that change no number.
    """
    defaults = settings(replace(RunConfig(), model=config.model))
    groups = (f"{config.model}.", "train.")
    kept = {
        key: value
        for key, value in settings(config).items()
        if key.startswith(groups) and key not in NO_EFFECT and value != defaults.get(key)
    }
    content: dict[str, Any] = {
        "model": config.model,
        "seed": config.seed,
        "settings": kept,
        "data": fingerprint,
    }
    plugged = [value for value in kept.values() if isinstance(value, str) and is_plugin(value)]
    if plugged:
        content["plugins"] = plugin_hashes(plugged)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read_results(study: Path) -> dict[str, Line]:
    """The finished runs of a study by key. A last line cut short by a crash is removed, so that its job runs again."""
    path = study / RESULTS_FILE
    if not path.exists():
        return {}
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
    return {line["key"]: line for line in read_json_lines(path) if line.get("kind") == "run"}


def in_blocks(window_nats: np.ndarray, window_tokens: np.ndarray) -> tuple[list[float], list[int]]:
    """(nats, tokens) of consecutive blocks of the scored windows, at most STRETCHES of them."""
    parts = np.array_split(np.arange(len(window_nats)), min(STRETCHES, len(window_nats)))
    nats = [round(float(window_nats[part].sum()), 3) for part in parts]
    return nats, [int(window_tokens[part].sum()) for part in parts]


def block_tokens(data: PreparedData, context_length: int) -> list[int]:
    """Tokens in each block of the test part; every run of a study has the same blocks."""
    tokens = scored_windows(len(data.test_ids), data.test_doc_offsets, context_length).tokens
    return in_blocks(np.zeros(len(tokens)), tokens)[1]
