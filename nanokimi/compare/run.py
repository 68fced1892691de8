"""THE COMPARISON: every model on the same tokens, in turns, each in its own process; then one report.

Turns of a few steps are passed between the arms, so that whatever else the machine does hits all of them alike.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from nanokimi.compare.matched import describe_match, matched_arms
from nanokimi.compare.summary import arm_segments, paired_difference, verdict
from nanokimi.compare.worker import Arm
from nanokimi.config import BUDGETS, DISPLAY_NAMES, RunConfig, TrainConfig
from nanokimi.config.files import save_config
from nanokimi.data.parts import split_note
from nanokimi.data.store import PreparedData
from nanokimi.errors import TrainingError
from nanokimi.measure.baselines import gzip_bits, ngram_nats, unigram_nats
from nanokimi.runtime.device import check_memory_limit, choose_device
from nanokimi.runtime.display import Display
from nanokimi.runtime.files import (
    describe_environment,
    read_json,
    read_json_lines,
    refuse_links,
    write_json,
)
from nanokimi.runtime.interrupts import Interrupted, on_first_signal
from nanokimi.runtime.locks import only_process
from nanokimi.train.runs import (
    CONFIG_FILE,
    fresh_folder,
    keep_plugs,
    restored_if_refused,
    set_up,
    take_up,
)

SCHEMA_VERSION = 1
LN2 = float(np.log(2))


def compare(
    config: RunConfig, out: Path, *, resume: bool = False, allow_changes: bool = False
) -> dict[str, Any]:
    """Train the two arms that `config` names, measure and audit them, write the report; return report.json's content.

    Raises:
        UserError: the input or the configuration cannot be used.
        TrainingError: an arm failed.
        Interrupted: a signal came; the arms were saved and `resume` continues them.
    """
    check_memory_limit(config.train.memory_limit_gb, choose_device(config.train.device))
    if not resume:
        with fresh_folder(out) as folder:
            config, data = set_up(config, folder)
            make_arms(config, data, folder)
    with only_process(out), restored_if_refused(out, allow_changes):
        if resume:
            refuse_links(out)
            config, data = take_up(config, out)
            make_arms(config, data, out)
        try:
            return train_and_report(config, data, out, resume, allow_changes)
        except OSError as error:
            where = f"{error.filename or out}: {error.strerror or error}"
            raise TrainingError(f"cannot write {where}; what was saved is whole: {again(out)}") from None


def make_arms(config: RunConfig, data: PreparedData, folder: Path) -> None:
    """One run folder for each arm, with its configuration; whatever is there already is kept."""
    if not (folder / "environment.json").exists():
        write_json(folder / "environment.json", describe_environment())
    for name, arm in matched_arms(config, data, folder).items():
        (folder / name).mkdir(exist_ok=True)
        save_config(arm, folder / name / CONFIG_FILE)
        shutil.copyfile(folder / "environment.json", folder / name / "environment.json")
        keep_plugs(arm, folder / name)


def again(out: Path) -> str:
    """How to go on."""
    return f"continue with: nanokimi compare --resume --out {out}"


def train_and_report(
    config: RunConfig, data: PreparedData, out: Path, resume: bool, allow_changes: bool
) -> dict[str, Any]:
    """Everything that happens once folders, configuration and data are there."""
    baselines = score_baselines(data)
    with Display([DISPLAY_NAMES[name] for name in config.compare.arms], _tokens_per_step(config)) as display:
        results = train_in_turns(config, out, display, resume, allow_changes)
    report = build_report(config, data, baselines, results, out)
    write_json(out / "report.json", report)

    from nanokimi.report.page import write_report

    write_report(out)
    return report


def train_in_turns(
    config: RunConfig, out: Path, display: Display, resume: bool, allow_changes: bool
) -> list[dict[str, Any]]:
    """Run the arms to their end, `turn_steps` at a time, and return their results."""
    arms: list[Arm] = []
    signals: list[int] = []
    stopped = f"interrupted; {again(out)}"

    def ask_to_stop(number: int) -> None:
        signals.append(number)
        for arm in arms:
            arm.tell_to_stop()

    def stop_now(number: int) -> None:
        raise Interrupted(number, stopped)

    try:
        for name in config.compare.arms:
            arms.append(Arm(DISPLAY_NAMES[name], out / name, resume, allow_changes))
        with on_first_signal(ask_to_stop):
            while not all(arm.finished for arm in arms) and not signals:
                for arm in arms:
                    if not arm.finished and not signals:
                        for record, total in arm.take_turn(config.compare.turn_steps):
                            display.show(arm.name, record, total)
                        display.say(arm.name, "trained" if arm.finished else "waiting")
            for arm in arms:
                if signals:
                    arm.stop()
        if signals:
            raise Interrupted(signals[0], stopped)
        with on_first_signal(stop_now):  # all is saved: what is left can be done again
            return [measure(arm, display) for arm in arms]
    except TrainingError as error:
        raise TrainingError(f"{error}; {again(out)}") from None
    finally:
        for arm in arms:
            arm.process.kill()


def measure(arm: Arm, display: Display) -> dict[str, Any]:
    """The result of an arm that is trained."""
    display.say(arm.name, "being audited and measured")
    result = arm.finish()
    display.say(arm.name, "done")
    return result


def score_baselines(data: PreparedData) -> dict[str, dict[str, float | None]]:
    """What models without a neural network reach on the test part, so that an implausible loss stands out."""
    facts, vocab_size = data.facts, data.tokenizer.vocab_size
    scores: dict[str, dict[str, float | None]] = {}
    for name, nats in (
        ("unigram", unigram_nats(data.train_ids, data.test_ids, vocab_size)),
        ("5-gram", ngram_nats(data.train_ids, data.test_ids, vocab_size)),
    ):
        per_byte = nats / LN2 / facts["test_text_bytes"]
        scores[name] = {"test_loss": nats / facts["test_tokens"], "bits_per_byte": per_byte}
    text = [data.tokenizer.decode(ids).encode() for ids in (data.train_ids[-65536:], data.test_ids)]
    if "test_floor_nats" in facts:
        floor = facts["test_floor_nats"]
        per_byte = floor / LN2 / facts["test_text_bytes"]
        scores["floor"] = {"test_loss": floor / facts["test_tokens"], "bits_per_byte": per_byte}
    scores["gzip"] = {"test_loss": None, "bits_per_byte": gzip_bits(*text) / facts["test_text_bytes"]}
    return scores


def build_report(
    config: RunConfig,
    data: PreparedData,
    baselines: dict[str, dict[str, float | None]],
    results: list[dict[str, Any]],
    out: Path,
) -> dict[str, Any]:
    """The content of report.json; docs/report.md describes each field."""
    train = config.train
    records = {r["name"]: read_json_lines(out / r["folder"] / "metrics.jsonl") for r in results}
    nats = [np.load(out / r["folder"] / "window_nats.npy", allow_pickle=False) for r in results]
    paired = paired_difference(nats[0], nats[1], data.facts["test_tokens"])
    environment = read_json(out / "environment.json")
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": verdict(results, paired, baselines),
        "match": describe_match(config, results),
        "runs": results,
        "data": {**data.facts, "split_note": split_note(data.facts), "baselines": baselines},
        "machine": {**environment, "device": train.device},
        "command": environment["command"],
        "repeat": shlex.join(["nanokimi", "compare", "--config", str(out / CONFIG_FILE)]),
        "seed": config.seed,
        "settings": {
            "context_length": train.context_length,
            "batch_size": train.batch_size,
            "dtype": train.dtype,
            "threads": train.threads,
            "budget": describe_budget(train),
            "turn_steps": config.compare.turn_steps,
        },
        "segments": arm_segments(records, _tokens_per_step(config)),
        "paired": {
            "windows": len(nats[0]),
            "note": "The interval pairs the same test windows; it does not contain the noise of another seed.",
        },
    }


def describe_budget(train: TrainConfig) -> str:
    """The budget in words."""
    name = next(name for name in BUDGETS if getattr(train, name) is not None)
    return f"{getattr(train, name):,} {name.removeprefix('max_')}"


def _tokens_per_step(config: RunConfig) -> int:
    return config.train.batch_size * config.train.context_length
