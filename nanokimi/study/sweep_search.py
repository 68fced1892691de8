"""`nanokimi sweep --search`: the full search for the configured arms, its search.json, and lines for a preset.

`nanokimi sweep --inherit` writes the same file, with settings that a search of another configuration found for the arms
of the same names, and each arm's learning rate tuned here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanokimi.config import RunConfig
from nanokimi.report.search_page import SEARCH_FILE, preset_lines, rate_found, write_search_page
from nanokimi.report.search_place import beside_sentence
from nanokimi.report.units import seconds as in_time
from nanokimi.runtime.drawing import draw_or_say
from nanokimi.runtime.files import describe_environment, write_json
from nanokimi.study.inherited import read_earlier, tune_inherited
from nanokimi.study.settle import TuningOptions, run_searches
from nanokimi.study.study import open_study
from nanokimi.study.sweep import sound_arms
from nanokimi.study.tuning_record import INHERITED, is_at_edge

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SearchOptions:
    """What the command line gives besides the configuration."""

    tuning: TuningOptions = TuningOptions()
    inherit: str | None = None
    """The earlier search whose settings the arms take, as `compare.search` names it. Only rates are tuned then."""
    workers: int | None = None
    keep: bool = False


def run_search(config: RunConfig, out: Path, options: SearchOptions) -> dict[str, Any]:
    """Run the same search for every arm and write search.json and its page into `out`; returns the former.

    With `options.inherit` it is the same grid of rates for every arm, around the one that it inherits. What was
    interrupted in `out` is continued.
    """
    earlier = None if options.inherit is None else read_earlier(config, options.inherit, options.tuning)
    with open_study(config, out) as study:
        arms = sound_arms(study)
        with study.pool(options.workers, options.keep) as pool:
            if earlier is None:
                records = run_searches(study, pool, arms, options.tuning)
            else:
                records = tune_inherited(study, pool, arms, earlier, options.tuning)
        families = {arm.name: {"family": arm.config.model} for arm in arms}
        metadata, environment = study.data.metadata, describe_environment(study.config.train.device)
        content = {
            "schema_version": SCHEMA_VERSION,
            "arms": {name: {**record, **families[name]} for name, record in records.items()},
            "machine": {key: environment[key] for key in ("time", "command", "processor", "cores", "gpu")},
            "commit": environment["commit"],
            "steps": study.steps,
            "data": {
                "path": Path(metadata["path"]).name,
                "train_tokens": metadata["train_tokens"],
                "val_tokens": metadata["val_tokens"],
            },
        }
        write_json(out / SEARCH_FILE, content)
    draw_or_say(lambda: write_search_page(out), out, f"nanokimi report {out}")
    return content


def search_text(content: dict[str, Any]) -> str:
    """Each arm's best settings as YAML, the curves around them, and the cost, as text for the terminal."""
    arms = content["arms"]
    lines: list[str] = []
    for name, record in arms.items():
        lines += [*arm_lines(name, record), ""]
    runs = sum(record["runs"] for record in arms.values())
    cost = sum(record["cpu_seconds"] for record in arms.values())
    lines.append(f"Cost: {runs:,} runs of {content['steps']:,} steps, {in_time(cost)} of a processor")
    return "\n".join(lines) + "\n"


def arm_lines(name: str, record: dict[str, Any]) -> list[str]:
    """The lines about one arm."""
    edge = is_at_edge(record)
    place = f"AT THE EDGE in {', '.join(edge)}" if edge else "inside what was tried"
    loss = "diverged" if record["loss"] is None else f"{record['loss']:.4f}"
    cost = (
        f"{record['trials']} trials, {record['runs']} runs, {in_time(record['cpu_seconds'])} of a processor"
    )
    lines = [f"{name}: validation loss {loss} ({place}); {cost}"]
    if beside := beside_sentence([(name, record)]):
        lines.append(f"  {beside}")
    lines += [f"  {line}" for line in (record["design"], *preset_lines(record).split("\n"))]
    lines += [
        f"  not searched: {hyperparameter} ({why})" for hyperparameter, why in record["left_out"].items()
    ]
    if record["kind"] == INHERITED:
        lines.append(f"  {rate_found(record)}; loss along the rate:")
    else:
        lines.append("  loss along each hyperparameter through the centre of the last pattern:")
    for hyperparameter, curve in record["sensitivity"].items():
        found = curve_text(curve, record["best_values"][hyperparameter])
        lines.append(f"    {hyperparameter:<13} {found}{' AT THE EDGE' * (hyperparameter in edge)}")
    return lines


def curve_text(curve: Sequence[Sequence[Any]], best: Any) -> str:
    """Values with their losses, with the best one marked."""
    return ", ".join(
        f"{value if isinstance(value, str) else format(value, 'g')}: "
        f"{'diverged' if loss is None else format(loss, '.4f')}{' (best)' * (value == best)}"
        for value, loss in curve
    )
