"""report.json from the results of all runs: each arm's means over seeds, the pairs, the verdict and the baselines.

docs/report.md describes each field.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from nanokimi.compare.match import describe_match
from nanokimi.compare.searched import search_records
from nanokimi.compare.summary import arm_segments
from nanokimi.compare.verdict import looks_sentence, pairs_of, text_interval, verdict
from nanokimi.config import BUDGETS, RunConfig, TrainConfig
from nanokimi.config.arms import DEFAULT_ARMS, slug
from nanokimi.config.safe_yaml import read_yaml
from nanokimi.data.batches import scored_windows
from nanokimi.data.parts import split_note
from nanokimi.data.store import PreparedData
from nanokimi.measure.baselines import GZIP_WINDOW_BYTES, gzip_bits, last_of, ngram_nats, unigram_nats
from nanokimi.report.by_source import source_means
from nanokimi.report.records import SCHEMA_VERSION
from nanokimi.report.search_note import search_note
from nanokimi.runtime.files import read_json, read_json_lines
from nanokimi.runtime.progress import step_progress
from nanokimi.train.run_folder import CONFIG_FILE

ORDER = 5
GZIP_TOKENS = 2 * GZIP_WINDOW_BYTES
"""Of each training text's end, to fill gzip's window: twice its bytes, because a token may have no text."""
LN2 = float(np.log(2))
AVERAGED = (
    "test_loss",
    "test_bits_per_byte",
    "val_loss",
    "floor_gap",
    "attainable_floor",
    "train_seconds",
    "ms_per_step",
    "tokens_per_second",
    "peak_memory_bytes",
    "decode_ms_per_token",
    "prefill_ms",
)
"""Numbers that a report gives as means over seeds; None if no seed has one."""
ALIKE = ("params_active", "params_total", "flops", "tokens", "steps", "optimizer", "lr", "schedule")
"""Entries that do not depend on the seed."""


def build_report(
    config: RunConfig,
    configs: dict[str, RunConfig],
    data: PreparedData,
    baselines: dict[str, dict[str, float | None]],
    results: list[dict[str, Any]],
    out: Path,
    *,
    verb: str = "compare",
) -> dict[str, Any]:
    """The content of report.json. `configs` holds the configuration of each arm.

    With the verb "train" there is one result, and `out` is the folder of its run.
    """
    train = config.train
    runs = [as_run(result) for result in results]
    if verb == "train":
        runs = [{**run, "folder": "."} for run in runs]
    search = search_records(config, configs)
    arms = [arm_row(name, runs, search.get(name)) for name in configs]
    spread = config.compare.spread
    pairs = pairs_of(arms, runs, spread)
    windows = scored_windows(len(data.test_ids), data.test_doc_offsets, train.context_length)
    for pair in pairs:
        pair["text95"] = text_interval(pair, runs, windows.tokens, out)
    environment = read_json(out / "environment.json")
    first = {run["arm"]: run for run in runs if run["seed"] == config.seed}
    records = {name: read_json_lines(out / run["folder"] / "metrics.jsonl") for name, run in first.items()}
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": with_looks(
            verdict(arms, pairs, baselines, spread),
            earlier_numbers_of_seeds(out),
            config.compare.seeds,
            dropped_arms(out, configs),
        ),
        "arms": arms,
        "runs": runs,
        "comparisons": pairs,
        "spread": None if spread is None else {**vars(spread)},
        "search_note": search_note(arms),
        "match": describe_match(config, arms),
        "data": {**data.metadata, "split_note": split_note(data.metadata), "baselines": baselines},
        "machine": {**environment, "device": train.device},
        "command": environment["command"],
        "repeat": shlex.join(["nanokimi", verb, "--config", str(out / CONFIG_FILE)]),
        "seeds": [config.seed + i for i in range(config.compare.seeds)],
        "settings": {
            "context_length": train.context_length,
            "batch_size": train.batch_size,
            "dtype": train.dtype,
            "threads": train.threads,
            "budget": describe_budget(train),
            "turn_steps": config.compare.turn_steps,
        },
        "segments": arm_segments(records, train.batch_size * train.context_length),
    }


def earlier_configurations(out: Path) -> list[dict[str, Any]]:
    """What the comparison's configuration was before each change, the first one first."""
    kept = sorted(out.glob("config-before-*.yaml"), key=lambda path: (len(path.name), path.name))
    return [found if isinstance(found := read_yaml(path), dict) else {} for path in kept]


def earlier_numbers_of_seeds(out: Path) -> list[int]:
    """The numbers of seeds that the comparison had before its configuration was changed, the smallest first."""
    known = [one.get("compare", {}).get("seeds") for one in earlier_configurations(out)]
    return sorted({seeds for seeds in known if isinstance(seeds, int)})


def dropped_arms(out: Path, arms: Collection[str]) -> list[str]:
    """The arms that the comparison had before its configuration was changed, and does not have any more."""
    earlier = [name for one in earlier_configurations(out) for name in one.get("arms") or DEFAULT_ARMS]
    return [name for name in dict.fromkeys(earlier) if name not in arms]


def with_looks(
    found: dict[str, Any], earlier: Sequence[int], seeds: int, dropped: Sequence[str] = ()
) -> dict[str, Any]:
    """The verdict, with a sentence if runs that may have been judged before are judged otherwise now."""
    warning = looks_sentence(earlier, seeds, dropped)
    return {**found, "sentence": f"{found['sentence']} {warning}"} if warning else found


def as_run(result: dict[str, Any]) -> dict[str, Any]:
    """A run's result.json as an entry of the report."""
    flops = (
        result["flops_per_token"] * result["tokens"] + result["optimizer_flops_per_step"] * result["steps"]
    )
    folder = f"{slug(result['name'])}/{result['folder']}"
    return {**result, "arm": result["name"], "folder": folder, "flops": flops}


def arm_row(name: str, runs: list[dict[str, Any]], search: dict[str, Any] | None) -> dict[str, Any]:
    """The entry of one arm, over its seeds."""
    own = [run for run in runs if run["arm"] == name]
    leaks = [f"{r['audit']['verdict']}: {r['audit']['where']}" for r in own if not r["audit"]["causal"]]
    row: dict[str, Any] = {"name": name, "slug": slug(name), "seeds": [run["seed"] for run in own]}
    row |= {"leaking": leaks[0] if leaks else None}
    for key in AVERAGED:
        known = [run[key] for run in own if run.get(key) is not None]
        row[key] = fmean(known) if known else None
    if sources := source_means(own):
        row["test_sources"] = sources
    losses = [run["test_loss"] for run in own]
    row["deviation"] = stdev(losses) if len(losses) > 1 else None
    return {**row, **{key: own[0][key] for key in ALIKE}, "search": search}


def score_baselines(data: PreparedData) -> dict[str, dict[str, float | None]]:
    """The scores of baselines without a neural network on the same text, which expose an implausible loss."""
    metadata, vocab_size = data.metadata, data.tokenizer.vocab_size
    scores: dict[str, dict[str, float | None]] = {}
    with step_progress("counting baselines: unigram, 5-gram, gzip", ORDER + 1) as report:
        totals = {"unigram": unigram_nats(data.train_ids, data.test_ids, vocab_size)}
        report()
        totals["5-gram"] = ngram_nats(data.train_ids, data.test_ids, vocab_size, ORDER, report, data.mixture)
        gzip = gzip_bits(read_by_gzip(data), data.tokenizer.decode(data.test_ids).encode())
        report()
    for name, nats in totals.items():
        per_byte = nats / LN2 / metadata["test_text_bytes"]
        scores[name] = {"test_loss": nats / metadata["test_tokens"], "bits_per_byte": per_byte}
    if "test_floor_nats" in metadata:
        floor = metadata["test_floor_nats"]
        per_byte = floor / LN2 / metadata["test_text_bytes"]
        scores["floor"] = {"test_loss": floor / metadata["test_tokens"], "bits_per_byte": per_byte}
    scores["gzip"] = {"test_loss": None, "bits_per_byte": gzip / metadata["test_text_bytes"]}
    return scores


def read_by_gzip(data: PreparedData) -> bytes:
    """The training text that gzip remembers before the test text: of a mixture, the end of each text by its share."""
    mixture = data.mixture
    texts = [data.train_ids] if mixture is None else mixture.texts(data.train_ids)
    ends = [data.tokenizer.decode(ids[-GZIP_TOKENS:]).encode() for ids in texts]
    return b"".join(last_of(ends, [1.0] if mixture is None else mixture.shares.tolist(), GZIP_WINDOW_BYTES))


def describe_budget(train: TrainConfig) -> str:
    """The budget in words."""
    name = next(name for name in BUDGETS if getattr(train, name) is not None)
    return f"{getattr(train, name):,} {name.removeprefix('max_')}"
