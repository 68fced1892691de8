"""What all studies share: folder and data, arms, their runs, plan and report.

A plan says which runs belong to which arm, and which arms are compared. It is written into results.jsonl beside the
runs, so that the report can be made from that one file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nanokimi.compare.earlier_searches import earlier_variances, patterns_of
from nanokimi.compare.match import in_steps, steps_of
from nanokimi.config import RunConfig
from nanokimi.config.parsing import with_changes
from nanokimi.config.rules import validate
from nanokimi.data.parts import split_note
from nanokimi.data.store import PreparedData
from nanokimi.errors import UserError
from nanokimi.measure.floor import floors
from nanokimi.measure.stats import search_variance
from nanokimi.report.metrics import STUDY_KEYS
from nanokimi.runtime.files import (
    append_json_line,
    create_run_folder,
    describe_environment,
    first_missing,
    read_json_lines,
    refuse_links,
    remove_what_was_made,
)
from nanokimi.runtime.locks import LOCK_FILE, only_process
from nanokimi.study.effects import effects
from nanokimi.study.jobs import (
    JOBS_FOLDER,
    RESULTS_FILE,
    Job,
    Line,
    as_job_config,
    block_tokens,
)
from nanokimi.study.labels import FEW_STEPS, earlier_looks, labels, tests_label, versions
from nanokimi.study.pool import Pool
from nanokimi.study.search_noise import known, searched_arm
from nanokimi.train.run_folder import set_up, whole_where_it_stops

SCHEMA_VERSION = 1
TUNING_SEED = 1000
"""The distance of the seeds for tuning from the configuration's seed, at which the seeds that judge arms begin."""
MAX_SEEDS = 1000
"""The most seeds of either kind."""
ALIKE = ("params_active", "params_total", "flops", "tokens", "steps")
"""Numbers of a run that do not depend on the seed."""


@dataclass(frozen=True)
class StudyArm:
    """One arm: a name and a configuration, whose settings may be replaced by tuned ones."""

    name: str
    config: RunConfig
    changes: dict[str, Any] = field(default_factory=dict)
    """The settings in which it differs from the arm or configuration that it was made from."""
    about: str = ""
    size_gap: float | None = None
    """Relative difference from the size that it was matched to; None if it was not matched."""
    tuning: dict[str, Any] | None = None
    """How its settings were found (see `tuning_record`); None if they are as configured."""
    leaking: str | None = None
    """Where the audit found a leak; None if it found none."""
    made_from: str | None = None
    """The arm of the study that a user's arm was made from."""
    components: tuple[str, ...] | None = None
    """The components of the ladder that it has; None for a user's arm."""
    holds: tuple[str, ...] = ()
    """Settings that it keeps when it inherits another arm's, beside those that it changes; without the family."""
    inherits: str | None = None
    """The arm whose settings it takes in a test of the inheritance."""
    family: str | None = None
    """The family of `scale` that it is the member of `hidden_size` of."""
    hidden_size: int | None = None

    @property
    def steps(self) -> int:
        """The steps of its runs, which in `scale` depend on its size."""
        steps = self.config.train.max_steps
        assert steps is not None, "open_study() turns every budget into steps"
        return steps

    def origin(self) -> dict[str, Any]:
        """What the study's records call its changes: the settings, and where the arm comes from."""
        fields = {
            "from": self.made_from,
            "components": None if self.components is None else list(self.components),
            "holds": list(self.holds) or None,
            "inherits": self.inherits,
            "family": self.family,
            "hidden_size": self.hidden_size,
        }
        return {**self.changes, **{name: value for name, value in fields.items() if value is not None}}

    def with_settings(self, settings: Mapping[str, Any]) -> StudyArm:
        """The arm with some settings replaced, by key without the family in front. Raises UserError if invalid."""
        changes = {f"{self.config.model}.{key}": value for key, value in settings.items()}
        return replace(self, config=validate(with_changes(self.config, changes)))

    def tuned(self, record: dict[str, Any]) -> StudyArm:
        """The arm with the settings that were found for it, and the record of how."""
        return replace(self.with_settings(record["best"]), tuning=record)


@dataclass(frozen=True)
class Study:
    """A study's folder, its resolved configuration and its data."""

    folder: Path
    config: RunConfig
    data: PreparedData
    steps: int

    @property
    def text(self) -> str:
        """The name of the text, without its folder."""
        return Path(self.data.metadata["path"]).name

    def pool(self, workers: int | None, keep: bool) -> Pool:
        """A pool of workers for this study's jobs."""
        return Pool(self.folder, self.data, self.config.train.device, workers, keep)

    def seeds(self, count: int) -> list[int]:
        """The seeds that arms are judged by."""
        return [self.config.seed + i for i in range(count)]

    def tuning_seeds(self, count: int = 1) -> list[int]:
        """The seeds that settings are chosen by, which are never among `seeds`."""
        return [self.config.seed + TUNING_SEED + i for i in range(count)]


@contextmanager
def open_study(config: RunConfig, out: Path) -> Iterator[Study]:
    """Prepare the data and resolve the configuration in `out`, a new folder or that of a study to continue.

    A new folder is removed if the study is refused before its first run.
    """
    missing = first_missing(out)
    create_run_folder(out)
    found = {entry.name for entry in out.iterdir()} - {LOCK_FILE}
    if found and not found & {JOBS_FOLDER, RESULTS_FILE}:
        raise UserError(f"{out} already holds files and is not a study: choose another --out")
    ours = False
    try:
        with (
            only_process(out),
            whole_where_it_stops(out, f"make room, then repeat the command to go on in {out}"),
        ):
            ours = not found
            yield set_up_study(config, out)
    except UserError:
        if ours and not (out / RESULTS_FILE).exists():
            remove_what_was_made(out, missing)
        raise


def set_up_study(config: RunConfig, out: Path) -> Study:
    """The study in a locked folder. Raises UserError for a configuration that no study can have."""
    if config.seed + TUNING_SEED + MAX_SEEDS > 2**63:
        raise UserError(f"seed {config.seed} leaves no room for the seeds of a study")
    if config.train.memory_limit_gb is not None:
        raise UserError("train.memory_limit_gb has no effect in a study: leave it out")
    refuse_links(out)
    (out / JOBS_FOLDER).mkdir(exist_ok=True)
    asked = config.train.device
    config, data = set_up(config, out / JOBS_FOLDER)
    steps = steps_of(config, len(data.train_ids))
    device = config.train.device
    if asked == "auto":
        device = device.partition(":")[0]  # use every GPU
    train = replace(config.train, device=device, max_epochs=None, max_tokens=None, max_steps=steps)
    return Study(out, replace(config, train=train), data, steps)


def job_of(arm: StudyArm, seed: int, purpose: str, steps: int | None = None, audited: bool = False) -> Job:
    """A run of an arm, with its own number of steps or `steps`; the schedule always has the same shares of the run."""
    config = arm.config
    if steps is not None:
        config = with_changes(config, in_steps(config, arm.steps, steps))
    return Job(arm.name, as_job_config(config, seed), purpose, arm.origin(), audited)


def run_seeds(pool: Pool, arms: Sequence[StudyArm], seeds: Sequence[int]) -> list[StudyArm]:
    """Train every arm with every seed and audit the first seed's model; returns the arms, with leaking ones marked.

    Raises UserError if one of these seeds is one that an arm's settings were chosen by, as those of a file may be.
    """
    sound = [arm for arm in arms if arm.leaking is None]
    for arm in sound:
        if both := sorted({*seeds} & {*(arm.tuning or {}).get("seeds", ())}):
            raise UserError(
                f"the settings of '{arm.name}' were chosen by the loss with seed {both[0]}, which cannot judge them, "
                "too: name another --seed"
            )
    jobs = [job_of(arm, seed, "seed", audited=seed == seeds[0]) for seed in seeds for arm in sound]
    pool.run(jobs)
    found = []
    for arm in arms:
        leak = arm.leaking
        if leak is None:
            verdict = pool.result(job_of(arm, seeds[0], "seed")).get("audit", {"causal": True})
            leak = None if verdict["causal"] else f"{verdict['verdict']}: {verdict['where']}"
        found.append(replace(arm, leaking=leak))
    return found


def runs_of(pool: Pool, arm: StudyArm, seeds: Sequence[int], steps: int | None = None) -> list[str]:
    """The keys of an arm's runs, one for each seed; none if it leaks."""
    return [] if arm.leaking else [pool.key(job_of(arm, seed, "seed", steps)) for seed in seeds]


def comparison_entry(
    family: str, name: str, first: str, second: str, budget: str = "tokens", about: str = ""
) -> dict[str, Any]:
    """A comparison as an entry of a plan: first minus second."""
    weights = {first: 1, second: -1}
    return {"family": family, "name": name, "weights": weights, "budget": budget, "about": about}


def study_title(title: str, arms: Sequence[StudyArm], quick: bool, steps: int) -> str:
    """A study's title, which begins with QUICK or NOT TUNED if its effects may be those of the settings."""
    untuned = any(arm.tuning is None for arm in arms if arm.leaking is None)
    words = ["QUICK"] * (quick or steps < FEW_STEPS) + ["NOT TUNED"] * untuned
    return f"{', '.join(words)}: {title}" if words else title


def write_plan(study: Study, kind: str, content: dict[str, Any]) -> dict[str, Any]:
    """Complete a plan with the entries that all plans have, and append it to results.jsonl unless it is there."""
    metadata, environment = study.data.metadata, describe_environment(study.config.train.device)
    train = study.config.train
    plan = {
        "kind": "plan",
        "schema_version": SCHEMA_VERSION,
        "study": kind,
        "data": {
            "path": Path(metadata["path"]).name,
            "val_tokens": metadata["val_tokens"],
            "test_tokens": metadata["test_tokens"],
            "train_tokens": metadata["train_tokens"],
            **floors(study.data, train.context_length),
            "split_note": split_note(metadata),
        },
        "settings": {
            "context_length": train.context_length,
            "batch_size": train.batch_size,
            "steps": study.steps,
            "dtype": train.dtype,
            "device": train.device,
        },
        "machine": {k: environment[k] for k in ("time", "command", "processor", "cores", "gpu", "commit")},
        "block_tokens": block_tokens(study.data, train.context_length),
        **content,
    }
    path = study.folder / RESULTS_FILE
    plans = [line for line in read_json_lines(path) if line["kind"] == "plan"] if path.exists() else []
    plan |= earlier_looks(plans, plan)
    if plans and {**plans[-1], "machine": 0} == {**plan, "machine": 0}:
        return plans[-1]
    append_json_line(path, plan)
    return plan


def arm_entry(arm: StudyArm, runs: dict[str, list[str]]) -> dict[str, Any]:
    """An arm as an entry of a plan."""
    return {
        "name": arm.name,
        "about": arm.about,
        "changes": arm.origin(),
        "lr": arm.config.family.optim.lr,
        "optimizer": arm.config.family.optim.name,
        "size_gap": arm.size_gap,
        "tuning": arm.tuning,
        "leaking": arm.leaking,
        "runs": runs,
    }


def arm_rows(plan: dict[str, Any], results: dict[str, Line]) -> list[dict[str, Any]]:
    """Each arm's numbers under each budget: mean and standard deviation over its seeds."""
    rows, by_name = [], {arm["name"]: arm for arm in plan["arms"]}
    for arm in plan["arms"]:
        kept = ("name", "about", "changes", "lr", "optimizer", "size_gap", "tuning", "leaking")
        head = {key: arm[key] for key in kept}
        if arm["leaking"]:
            rows.append({**head, "budget": "tokens", "seeds": 0, "test_loss": None, "val_loss": None})
            continue
        for budget, keys in arm["runs"].items():
            lines = [results[key] for key in keys]
            row = {**head, "budget": budget, **summary_of(lines)}
            if row["val_loss"] is not None:
                chosen = [line["val_loss"] for line in lines]
                row["search_variance"] = known(noise_of_search(arm, results, chosen))
                parent = by_name.get(str(searched_arm(arm)))
                row["inherited_variance"] = known(noise_of_inherited(parent, results, chosen))
                row["earlier_variances"] = {
                    str(search): known(noise)
                    for search, noise in earlier_variances(arm["tuning"] or {}, chosen).items()
                }
            rows.append(row)
    return rows


def noise_of_search(arm: dict[str, Any], results: dict[str, Line], judged: Sequence[float]) -> float:
    """The variance that an arm's search adds, if runs scatter as those judged."""
    patterns = patterns_of(arm["tuning"]) if arm["tuning"] else 0
    return search_variance(trials_of(arm, results), judged, patterns=patterns)


def noise_of_inherited(
    parent: dict[str, Any] | None, results: dict[str, Line], judged: Sequence[float]
) -> float:
    """The variance that the search of a planned arm adds to another one, with its settings and these losses.

    It is the larger of two, with the scatter of the searched arm's runs and with that of the other's. What misled the
    search was the scatter of the first, but what that costs, in nats, may be far more at another size, whose runs
    scatter more. 0 for an arm that inherits from none.
    """
    if parent is None:
        return 0.0
    own = [results[key]["val_loss"] for key in parent["runs"].get("tokens", ())]
    scatters = [judged, own] if own and None not in own else [judged]
    return max(noise_of_search(parent, results, losses) for losses in scatters)


def trials_of(arm: dict[str, Any], results: dict[str, Line]) -> list[list[float | None]]:
    """The losses of a planned arm's trials, by tuning seed; empty if it was not tuned.

    They come from its record. A record of an earlier version lacks them: then they come from the runs, or else from its
    curve of means, with each mean counted as one run, which errs on the wide side.
    """
    tuning = arm["tuning"]
    if tuning is None:
        return []
    if "table" in tuning:
        return [trial["losses"] for trial in tuning["table"]]
    by_rate: dict[float, list[float | None]] = {}
    # runs may be recorded under an arm of another name with the same settings
    names = {results[key]["arm"] for keys in arm["runs"].values() for key in keys}
    for line in results.values():
        if line["purpose"] == "tune" and line["arm"] in names:
            by_rate.setdefault(line["lr"], []).append(line["val_loss"])
    return list(by_rate.values()) or [[loss] for _, loss in tuning["curve"]]


def summary_of(lines: Sequence[Line]) -> dict[str, Any]:
    """Means over seeds. Losses are of the test part, and None if a run diverged."""
    losses: list[Any] = [None if line["val_loss"] is None else line["test_loss"] for line in lines]
    diverged = sum(loss is None for loss in losses)
    row: dict[str, Any] = {"seeds": len(lines), "diverged": diverged, "losses": losses}
    if diverged or not lines:
        return {**row, "test_loss": None, "val_loss": None}
    row |= {"test_loss": float(np.mean(losses)), "deviation": None}
    if len(lines) > 1:
        row["deviation"] = float(np.std(losses, ddof=1))
    for name in ("val_loss", *(key for key in STUDY_KEYS if key not in ALIKE)):
        # a line of an earlier version lacks later metrics
        values: list[Any] = [line.get(name) for line in lines]
        row[name] = None if None in values else float(np.mean(values))
    for name in ALIKE:
        row[name] = lines[0][name]
    return row


def choose(names: Sequence[str], wanted: str, option: str) -> list[str]:
    """The names that a comma-separated option chooses. Raises UserError for an unknown name."""
    chosen = [part.strip() for part in wanted.split(",") if part.strip()]
    for name in chosen:
        if name not in names:
            raise UserError(f"{option}: there is no '{name}'; there are {', '.join(names)}")
    return [name for name in names if name in chosen]


def report_of(
    plan: dict[str, Any],
    results: dict[str, Line],
    more: Callable[[dict[str, Any]], dict[str, Any]] = lambda report: {},
) -> dict[str, Any]:
    """The content of study.json, from the lines of results.jsonl alone."""
    kept = ("schema_version", "study", "title", "data", "settings", "machine", "seeds")
    report = {key: plan[key] for key in kept}
    arms = arm_rows(plan, results)
    found = effects(plan, results, arms)
    notes = labels(plan) + tests_label(found) + versions(plan, results)
    report |= {"labels": notes, "arms": arms, "effects": found}
    return {**report, **more(report)}
