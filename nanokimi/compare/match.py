"""What the arms of a comparison are matched in, and `compare --match`: the sizes or budgets that match them.

No single quantity is "fair". Sizes (active or total parameters) are matched by the baseline's width; budgets (FLOPs,
seconds) by giving the more expensive arm fewer steps, of which equal shares warm up and decay; tokens by equal steps.
Every output says in which of the five quantities a pair is matched and in which it is not. What was solved for is kept
in the comparison's match.json, so that speeds are measured once and resuming finds the same arms.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nanokimi.compare.size import TOLERANCE, parameters, solve_size
from nanokimi.config import BUDGETS, ModuleConfig, RunConfig
from nanokimi.config.arms import arm_configs
from nanokimi.config.parsing import with_changes
from nanokimi.config.rules import validate
from nanokimi.data.store import PreparedData
from nanokimi.errors import UserError
from nanokimi.measure.cost import model_cost, optimizer_flops
from nanokimi.model.build import build_model
from nanokimi.runtime.files import read_json, write_json
from nanokimi.train.expert_parallel import sharing_where_possible
from nanokimi.train.state import build_state
from nanokimi.train.step import train_step
from nanokimi.train.torch_compile import compile_step

QUANTITIES: dict[str, tuple[str, str]] = {
    "tokens": ("tokens", "tokens"),
    "active_params": ("active parameters", "params_active"),
    "total_params": ("total parameters", "params_total"),
    "flops": ("training FLOPs", "flops"),
    "seconds": ("training time", "train_seconds"),
}
"""For each quantity, its name in sentences and the field of a run's results that holds it."""
MATCH_FILE = "match.json"
TURNS, STEPS_A_TURN = 4, 6


def matched_arms(config: RunConfig, data: PreparedData, folder: Path) -> dict[str, RunConfig]:
    """The configuration of each arm, with `model` set. Also writes match.json if arms are to be matched."""
    arms = sharing_where_possible(arm_configs(config))
    require_enough_ids(arms, data)
    if config.compare.match == "none":
        return arms
    path = folder / MATCH_FILE
    budget = {name: getattr(config.train, name) for name in BUDGETS}
    asked = {"asked": config.compare.match, "budget": budget}
    kept = read_json(path) if path.exists() else {}
    if {name: kept.get(name) for name in asked} == asked:
        changes = kept["changes"]
    else:
        changes = solve(config.compare.match, arms, data)
        write_json(path, {"schema_version": 2, **asked, "changes": changes})
    changed = {
        name: validate(with_changes(arms[name], changes[name])) for name in arms.keys() & changes.keys()
    }
    return {**arms, **changed}


def require_enough_ids(arms: dict[str, RunConfig], data: PreparedData) -> None:
    """Raise UserError for an arm whose own vocabulary is smaller than the tokenizer's."""
    needed = data.tokenizer.vocab_size
    for name, arm in arms.items():
        own = arm.family.model.vocab_size
        if own is not None and own < needed:
            raise UserError(
                f"arms.{name}: model.vocab_size {own} is below the tokenizer's {needed}: leave it out, or raise it"
            )


def solve(quantity: str, arms: dict[str, RunConfig], data: PreparedData) -> dict[str, dict[str, Any]]:
    """The settings to change in each arm so that all are equal in `quantity`. Sizes are matched to the first arm's.

    Raises UserError for a budget in FLOPs or seconds, or if an arm's size cannot be changed.
    """
    first, *others = arms
    config = arms[first]
    if quantity in ("active_params", "total_params"):
        count = parameters(quantity, config.train.context_length)
        changes = {}
        for other in others:
            arm = arms[other]
            if isinstance(arm.family.model, ModuleConfig):
                raise UserError(
                    f"--match {quantity}: {other} is a class of yours, whose size cannot be solved for"
                )
            found = solve_size(arm.family.model, count, count(config.family.model))
            changes[other] = {f"{arm.model}.model.{name}": value for name, value in found.changes.items()}
        return changes
    steps = steps_of(config, len(data.train_ids))
    costs = {"tokens": equal_cost, "flops": flops_per_step, "seconds": seconds_per_step}[quantity](arms, data)
    budget = {"train.max_epochs": None, "train.max_tokens": None}
    return {
        name: {**budget, **in_steps(arms[name], steps, taken)}
        for name, taken in zip(arms, fewer_steps(steps, costs), strict=True)
    }


def in_steps(config: RunConfig, steps: int, taken: int) -> dict[str, Any]:
    """The settings with which an arm that is configured for `steps` takes `taken`: the same share of them warms up."""
    warmup = round(config.family.optim.warmup_steps / steps * taken)
    return {"train.max_steps": taken, f"{config.model}.optim.warmup_steps": warmup}


def equal_cost(arms: dict[str, RunConfig], data: PreparedData) -> list[float]:
    """Tokens of a training step: equal for all arms, so 1 each."""
    return [1.0 for _ in arms]


def flops_per_step(arms: dict[str, RunConfig], data: PreparedData) -> list[float]:
    """FLOPs of a training step, including the optimizer's."""
    costs = []
    for config in arms.values():
        train, model = config.train, config.family.model
        built = build_model(model, config.seed)
        shapes = {name: tuple(p.shape) for name, p in built.named_parameters()}
        tokens = train.batch_size * train.context_length
        per_token = model_cost(model, train.context_length).train_flops_per_token
        costs.append(tokens * per_token + optimizer_flops(shapes, config.family.optim, model, train))
    return costs


def seconds_per_step(arms: dict[str, RunConfig], data: PreparedData) -> list[float]:
    """Seconds of a training step: the median of a few, which the arms take in turns on this machine."""
    with tempfile.TemporaryDirectory(prefix="nanokimi-") as folder:
        states = [build_state(config, data, Path(folder)) for config in arms.values()]
        for state in states:
            if state.config.train.compile:
                compile_step(state)
        seconds: list[list[float]] = [[] for _ in states]
        for turn in range(TURNS + 1):
            for state, taken in zip(states, seconds, strict=True):
                for _ in range(STEPS_A_TURN):
                    record = train_step(state)
                    if turn:  # the first turn warms up
                        taken.append(record["step_ms"] / 1e3)
    return [statistics.median(taken) for taken in seconds]


def describe_match(config: RunConfig, arms: list[dict[str, Any]]) -> dict[str, Any]:
    """The entry of report.json on matching: what was asked for, and what each arm and the first are matched in.

    `arms` are the report's rows. `ratios` are those of the first arm to each other one.
    """
    first, *others = arms
    asked = config.compare.match
    ratios = {other["name"]: agreement(first, other) for other in others}
    sentences = [
        f"{first['name']} against {name}: {describe_agreement(found)}." for name, found in ratios.items()
    ]
    if asked != "none":
        gap = max((abs(found[asked] - 1) for found in ratios.values()), default=0.0)
        sentences.insert(
            0, f"Matched as asked in {QUANTITIES[asked][0]}; the largest remaining gap is {gap:.2%}."
        )
    return {"asked": None if asked == "none" else asked, "ratios": ratios, "sentence": " ".join(sentences)}


def agreement(first: dict[str, Any], second: dict[str, Any]) -> dict[str, float]:
    """The ratio of the first run to the second in each quantity."""
    return {
        name: float(first[field]) / float(second[field])
        for name, (_, field) in QUANTITIES.items()
        if first.get(field) and second.get(field)
    }


def describe_agreement(ratios: dict[str, float]) -> str:
    """Such as: Matched in tokens, active parameters (+0.4%); unmatched in total parameters (1.93x)."""
    matched, unmatched = [], []
    for name, ratio in ratios.items():
        title = QUANTITIES[name][0]
        if abs(ratio - 1) <= TOLERANCE:
            matched.append(title + (f" ({ratio - 1:+.1%})" if round(abs(ratio - 1), 3) else ""))
        else:
            unmatched.append(f"{title} ({ratio:.2f}x)")
    parts = [f"matched in {', '.join(matched)}"] if matched else []
    parts += [f"unmatched in {', '.join(unmatched)}"] if unmatched else []
    text = "; ".join(parts)
    return text[:1].upper() + text[1:]


def fewer_steps(steps: int, costs_per_step: Iterable[float]) -> list[int]:
    """The steps with which each arm spends what the cheapest one spends in `steps`."""
    costs = list(costs_per_step)
    cheapest = min(costs)
    return [max(round(steps * cheapest / cost), 1) for cost in costs]


def steps_of(config: RunConfig, train_tokens: int) -> int:
    """The steps of a budget in steps, epochs or tokens. Raises UserError for a budget in FLOPs or seconds."""
    train = config.train
    per_step = train.batch_size * train.context_length
    if train.max_steps is not None:
        return train.max_steps
    if train.max_epochs is not None:
        return -int(-train.max_epochs * train_tokens // per_step)
    if train.max_tokens is not None:
        return -int(-train.max_tokens // per_step)
    raise UserError("this needs a budget in steps, epochs or tokens: give --train.max_steps")
