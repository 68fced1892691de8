"""The same search for every arm: the same points first, then the same pattern around its own best, with equal trials.

The search begins with a Sobol sequence over the whole space, which gives each arm the same points. Then comes a
pattern: every hyperparameter moves one step down and one step up from the best so far, and after that all move at once,
each by what a parabola through its three losses advises. The next pattern has half the step. The last one is recorded
as the curve of each hyperparameter around the optimum. Nothing here trains: `score` does, so what is tried next depends
on losses alone, not on the number of workers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from nanokimi.config import RunConfig
from nanokimi.study.space import (
    COSINE_AT,
    DECAY,
    HYPERPARAMETERS,
    Hyperparameter,
    Point,
    Value,
    Values,
    hyperparameters_of,
    left_out,
    settings_of,
    space_record,
    values_at,
)

Asked = tuple[str, dict[str, Any], int]
"""(arm, settings, seed)."""
Score = Callable[[Sequence[Asked]], Sequence[float | None]]
"""Returns the losses of runs, in order; None if a run diverged."""
Record = dict[str, Any]
SOBOL_SEED = 14


@dataclass(frozen=True)
class Design:
    """How much is tried for every arm."""

    points: int = 32
    """Points of the Sobol sequence; a power of two spreads them evenly."""
    rounds: int = 2
    """Patterns, each with half the step of the one before."""
    step: float = 0.25
    """Step of the first pattern, as a share of each hyperparameter's range."""
    finalists: int = 4
    """The best Sobol points, which are scored with all seeds; the others are scored with the first seed."""

    @property
    def trials(self) -> int:
        """The number of trials for each arm."""
        return self.points + self.rounds * 2 * len(HYPERPARAMETERS) + max(self.rounds - 1, 0)

    def runs(self, seeds: int) -> int:
        """The number of runs for each arm."""
        again = min(self.finalists, self.points) * (seeds - 1)
        return self.points + again + (self.trials - self.points) * seeds

    def describe(self, seeds: int) -> str:
        """The design in words, for the record."""
        more = f", the best {min(self.finalists, self.points)} with {seeds} seeds" if seeds > 1 else ""
        text = f"{self.points} points of a Sobol sequence, the same for every arm, with one seed{more}"
        if not self.rounds:
            return text
        steps = ", ".join(f"{self.step / 2**i:.4g}" for i in range(self.rounds))
        text += (
            f"; then around the best each hyperparameter one step down and up, with {seeds} seed{'s' * (seeds > 1)}: "
            f"steps of {steps} of its range"
        )
        return text + (", between them the joint step that parabolas advise" if self.rounds > 1 else "")


@dataclass
class Trial:
    """One point of one arm."""

    point: Point
    values: Values
    settings: dict[str, Any]
    losses: list[float | None] = field(default_factory=list)

    @cached_property
    def key(self) -> str:
        """The settings as text: equal for equal trials."""
        return json.dumps(self.settings)

    @property
    def loss(self) -> float:
        """The mean over seeds; infinite if one of them diverged."""
        kept = [loss for loss in self.losses if loss is not None]
        return sum(kept) / len(kept) if kept and len(kept) == len(self.losses) else math.inf


@dataclass
class ArmSearch:
    """One arm's trials so far."""

    config: RunConfig
    steps: int
    sobol: Sequence[Point]
    drawn: int = 0
    trials: list[Trial] = field(default_factory=list)
    centre: Trial | None = None
    """The centre of the last pattern."""
    sides: dict[str, list[Trial]] = field(default_factory=dict)
    """The trials of the last pattern beside its centre, by hyperparameter."""

    @property
    def hyperparameters(self) -> list[Hyperparameter]:
        """The hyperparameters that this arm has."""
        return hyperparameters_of(self.config)

    def trial(self, point: Point) -> Trial:
        """The trial at a point, with its values as they would be run."""
        values = values_at(point, self.hyperparameters, self.steps)
        return Trial(point, values, settings_of(values, self.config, self.steps))

    def add(self, points: Iterator[Point]) -> Trial:
        """Add a trial at the first of the points that is new, or else at the next point of the Sobol sequence.

        The Sobol point keeps the numbers of trials equal if one arm runs out of new points near its best.
        """
        tried = {trial.key for trial in self.trials}
        found = next((trial for trial in map(self.trial, points) if trial.key not in tried), None)
        self.trials.append(found or self.next_sobol())
        return self.trials[-1]

    def next_sobol(self) -> Trial:
        """The trial at the next point of the Sobol sequence."""
        self.drawn += 1
        return self.trial(self.sobol[self.drawn - 1])

    def begin(self, count: int) -> list[Trial]:
        """Add trials at the first `count` points of the Sobol sequence."""
        self.trials = [self.next_sobol() for _ in range(count)]
        return self.trials

    def best(self, seeds: int) -> Trial:
        """The best trial that was scored with all seeds; if all diverged, the one with the lowest rate."""
        judged = [trial for trial in self.trials if len(trial.losses) == seeds]
        return min(judged, key=lambda trial: (trial.loss, trial.values["lr"]))

    def add_sides(self, step: float, seeds: int) -> list[Trial]:
        """Add a pattern around the best: two new trials for each hyperparameter of the space.

        The trials of a hyperparameter that this arm lacks go to another one, at half the step, so that all arms have
        equally many.
        """
        self.centre, self.sides = self.best(seeds), {}
        own = self.hyperparameters
        lacking = len(HYPERPARAMETERS) - len(own)
        todo = [(hyperparameter, step) for hyperparameter in own]
        todo += [(own[i % len(own)], step / 2) for i in range(lacking)]
        added = []
        for hyperparameter, length in todo:
            for sign in (-1, 1):
                trial = self.add(beside(self.centre.point, hyperparameter, sign * length))
                if on_line(trial.values, self.centre.values, hyperparameter):
                    self.sides.setdefault(hyperparameter.name, []).append(trial)
                added.append(trial)
        return added

    def add_joint(self, step: float) -> list[Trial]:
        """Add a trial in which all hyperparameters move at once, each by what its parabola advises."""
        assert self.centre is not None
        moves = {
            hyperparameter.name: move(
                self.centre, self.sides.get(hyperparameter.name, []), hyperparameter, step
            )
            for hyperparameter in self.hyperparameters
        }

        def points() -> Iterator[Point]:
            assert self.centre is not None
            for share in (1.0, 0.5, 0.25):
                yield tuple(
                    clipped(unit + share * moves.get(hyperparameter.name, 0.0))
                    for unit, hyperparameter in zip(self.centre.point, HYPERPARAMETERS, strict=True)
                )

        return [self.add(points())]


@cache
def sobol_points(count: int) -> tuple[Point, ...]:
    """The first `count` points of the sequence, which is always scrambled in the same way."""
    import torch

    engine = torch.quasirandom.SobolEngine(len(HYPERPARAMETERS), scramble=True, seed=SOBOL_SEED)
    return tuple(tuple(row) for row in engine.draw(count, dtype=torch.float64).tolist())


def clipped(unit: float) -> float:
    """The nearest coordinate within the space, which is 0 to 1."""
    return min(max(unit, 0.0), 1.0)


def beside(point: Point, hyperparameter: Hyperparameter, step: float) -> Iterator[Point]:
    """A step along one hyperparameter, then others nearby if it gives no new value (at an edge, or by rounding)."""
    place = HYPERPARAMETERS.index(hyperparameter)
    unit = COSINE_AT if hyperparameter.value(point[place]) == "cosine" else point[place]
    # The step itself comes first. The other shares are for a step that gives nothing new: at an edge of the space it is
    # cut to the centre, and a small one may round to the same whole steps of warm-up. They alternate between the
    # opposite side and this one. The whole step on the opposite side is not among them, because it has its own trial.
    for share in (1.0, -0.5, 0.5, -1.5, 1.5, -0.25, 0.25):
        yield (*point[:place], clipped(unit + share * step), *point[place + 1 :])


def on_line(values: Values, centre: Values, hyperparameter: Hyperparameter) -> bool:
    """Whether values differ from the centre's in this hyperparameter alone."""
    return all(values[name] == centre[name] for name in values if name != hyperparameter.name)


def move(centre: Trial, sides: Sequence[Trial], hyperparameter: Hyperparameter, step: float) -> float:
    """How far to move: to the parabola's lowest point, by at most a step, or to the best trial without a parabola."""
    here = hyperparameter.unit(centre.values[hyperparameter.name])
    points = sorted(
        (hyperparameter.unit(trial.values[hyperparameter.name]) - here, trial.loss)
        for trial in (centre, *sides)
    )
    best = min(points, key=lambda point: (point[1], abs(point[0])))[0]
    if len(points) != 3 or not all(math.isfinite(loss) for _, loss in points):
        return best
    (x0, y0), (x1, y1), (x2, y2) = points
    if len({x0, x1, x2}) < 3:
        return best
    first, second = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = (second - first) / (x2 - x0)
    if bend <= 0:
        return best
    lowest = (x0 + x1) / 2 - first / (2 * bend)
    return min(max(lowest, -step), step)


def search(
    arms: Mapping[str, RunConfig],
    score: Score,
    seeds: Sequence[int],
    steps: int | Mapping[str, int],
    design: Design,
) -> dict[str, Record]:
    """Search for every arm's settings; returns a record for each (see `tuning_record`).

    `steps` are those of all runs, or of each arm's.
    """
    sequence = sobol_points(2 * design.trials)
    own = dict.fromkeys(arms, steps) if isinstance(steps, int) else steps
    states = {name: ArmSearch(config, own[name], sequence) for name, config in arms.items()}

    def ask(trials: Mapping[str, Sequence[Trial]], chosen: Sequence[int]) -> None:
        due = [(name, trial, seed) for name, some in trials.items() for trial in some for seed in chosen]
        losses = score([(name, trial.settings, seed) for name, trial, seed in due])
        for (_, trial, _), loss in zip(due, losses, strict=True):
            trial.losses.append(loss)

    ask({name: state.begin(design.points) for name, state in states.items()}, seeds[:1])
    finalists = {
        name: sorted(state.trials, key=lambda trial: trial.loss)[: design.finalists]
        for name, state in states.items()
    }
    ask(finalists, seeds[1:])
    for number in range(design.rounds):
        step = design.step / 2**number
        ask({name: state.add_sides(step, len(seeds)) for name, state in states.items()}, seeds)
        if number < design.rounds - 1:
            ask({name: state.add_joint(step) for name, state in states.items()}, seeds)
    return {name: record_of(state, seeds, design) for name, state in states.items()}


def record_of(state: ArmSearch, seeds: Sequence[int], design: Design) -> Record:
    """What a study keeps of an arm's search. Its curves go through the last pattern's centre, at or near the best."""
    best = state.best(len(seeds))
    centre = state.centre or best
    return {
        "kind": "search",
        "space": space_record(state.hyperparameters),
        "left_out": left_out(state.config),
        "design": design.describe(len(seeds)),
        "patterns": design.rounds,
        "seeds": list(seeds),
        "best": best.settings,
        "best_values": best.values,
        "loss": best.loss if math.isfinite(best.loss) else None,
        "trials": len(state.trials),
        "runs": sum(len(trial.losses) for trial in state.trials),
        "cpu_seconds": 0.0,
        "interior": {
            hyperparameter.name: is_interior(hyperparameter, best.values[hyperparameter.name], state.trials)
            for hyperparameter in state.hyperparameters
        },
        "table": [{"values": trial.values, "losses": trial.losses} for trial in state.trials],
        "centre": centre.values,
        "sensitivity": {
            hyperparameter.name: curve_of(state, hyperparameter, centre, len(seeds))
            for hyperparameter in state.hyperparameters
        },
    }


def is_interior(hyperparameter: Hyperparameter, value: Value, trials: Sequence[Trial]) -> bool:
    """Whether a value lies strictly inside what was tried, and not at an edge of the space."""
    tried = [hyperparameter.unit(trial.values[hyperparameter.name]) for trial in trials]
    here = hyperparameter.unit(value)
    nothing_beyond = hyperparameter.scale == DECAY and value == "cosine"
    return min(tried) < here and (here < max(tried) or nothing_beyond) and not hyperparameter.is_end(value)


def curve_of(state: ArmSearch, hyperparameter: Hyperparameter, centre: Trial, seeds: int) -> list[list[Any]]:
    """[value, mean loss] of every trial that differs from the centre in this hyperparameter alone, in order."""
    on_it = [trial for trial in state.trials if len(trial.losses) == seeds]
    on_it = [trial for trial in on_it if on_line(trial.values, centre.values, hyperparameter)]
    on_it.sort(key=lambda trial: hyperparameter.unit(trial.values[hyperparameter.name]))
    return [
        [trial.values[hyperparameter.name], trial.loss if math.isfinite(trial.loss) else None]
        for trial in on_it
    ]
