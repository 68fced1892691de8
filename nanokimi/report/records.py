"""What the run folders say: each arm's facts and records, and the series that the figures and tables are made of.

Plain Python on plain lists: a report of a few thousand steps needs nothing faster, and a test can check every number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanokimi.errors import UserError
from nanokimi.runtime.files import read_json, read_json_lines

SCHEMA_VERSION = 1
MAX_POINTS = 400
MAX_COLUMNS = 120
MAX_SPIKES = 25
SMOOTHED_FRACTION = 0.02
IGNORED_FRACTION = 0.05

Record = dict[str, Any]
Series = tuple[list[float], list[float]]

BUDGETS = {
    "step": "Optimizer steps",
    "tokens": "Training tokens",
    "flops": "Training FLOPs",
    "train_seconds": "Training time (s)",
}
"""What a loss can be held against, and the name of that axis."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One run of the comparison."""

    name: str
    slot: int
    """Its place in the comparison, which gives it its colour, line style and marker."""
    facts: Record
    """Its entry in report.json."""
    records: list[Record]
    """Its metrics.jsonl."""

    @property
    def leaking(self) -> bool:
        """Whether the audit saw it look at the future, or give other logits each time."""
        return not self.facts["audit"]["causal"]

    @property
    def label(self) -> str:
        """Its name, with the warning that a figure or table must not lose."""
        return f"{self.name} ({self.fault})" if self.leaking else self.name

    @property
    def fault(self) -> str:
        """What the audit calls it if it does not pass: LEAKING, or NONDETERMINISTIC."""
        return self.facts["audit"].get("verdict", "LEAKING")

    def kind(self, kind: str) -> list[Record]:
        """Its records of one kind, in order."""
        return [record for record in self.records if record["kind"] == kind]

    @property
    def spikes(self) -> list[Record]:
        """Its loss spikes (step; loss and usual in nats per token), the highest above the usual first."""
        return sorted(self.facts.get("spikes") or [], key=lambda s: s["usual"] - s["loss"])

    @property
    def smoothing(self) -> int:
        """Steps over which its training loss is averaged in the figures."""
        return max(1, round(SMOOTHED_FRACTION * len(self.kind("train"))))


def read_comparison(folder: Path) -> tuple[Record, list[Arm]]:
    """report.json and its arms. Raises UserError if a file is missing or of another version."""
    report = read_json(folder / "report.json")
    if report.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{folder / 'report.json'} has schema_version {report.get('schema_version')}, this program reads "
            f"{SCHEMA_VERSION}: repeat the comparison"
        )
    arms = []
    for slot, facts in enumerate(report["runs"]):
        path = folder / facts["folder"] / "metrics.jsonl"
        if not path.exists():
            raise UserError(
                f"cannot read {path}: the comparison names this run but its records are not there"
            )
        arms.append(Arm(name=facts["name"], slot=slot, facts=facts, records=read_json_lines(path)))
    return report, arms


def series(records: Sequence[Record], x_key: str, y_key: str) -> Series:
    """The points of two fields, leaving out the records that lack either."""
    points = [(r[x_key], r[y_key]) for r in records if r.get(x_key) is not None and r.get(y_key) is not None]
    return [x for x, _ in points], [y for _, y in points]


def trailing_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and the `window - 1` before it; of fewer at the start."""
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means


def thin(points: Series, limit: int = MAX_POINTS) -> Series:
    """At most `limit` of the points, evenly spaced, with the first and the last."""
    xs, ys = points
    if len(xs) <= limit:
        return points
    kept = [round(i * (len(xs) - 1) / (limit - 1)) for i in range(limit)]
    return [xs[i] for i in kept], [ys[i] for i in kept]


def training_curve(arm: Arm, x_key: str, y_key: str = "loss") -> Series:
    """A field of the training records, averaged over the last `arm.smoothing` steps, at most MAX_POINTS points."""
    xs, ys = series(arm.kind("train"), x_key, y_key)
    return thin((xs, trailing_mean(ys, arm.smoothing)))


def validation_curve(arm: Arm, x_key: str) -> Series:
    """The validation loss at each evaluation, at most MAX_POINTS points."""
    return thin(series(arm.kind("eval"), x_key, "val_loss"))


def spike_places(arm: Arm, x_key: str) -> list[float]:
    """Where the arm's MAX_SPIKES highest spikes lie on the axis of a budget."""
    at = {record["step"]: record.get(x_key) for record in arm.kind("train")}
    places = [at.get(spike["step"]) for spike in arm.spikes[:MAX_SPIKES]]
    return [place for place in places if place is not None]


def peaks(points: Series, limit: int = MAX_POINTS) -> Series:
    """At most `limit` points, each the largest value of its stretch: a spike must not be thinned away."""
    xs, ys = points
    stretch = -(-len(xs) // limit) or 1
    starts = range(0, len(xs), stretch)
    return [xs[min(i + stretch, len(xs)) - 1] for i in starts], [max(ys[i : i + stretch]) for i in starts]


def loss_limits(arms: Sequence[Arm]) -> tuple[float, float]:
    """The loss axis: every low value, but only the high ones after the first 5% of the steps."""
    lows, highs = [], []
    for arm in arms:
        last = max((r["step"] for r in arm.records), default=0)
        for xs, ys in (training_curve(arm, "step"), validation_curve(arm, "step")):
            late = [y for x, y in zip(xs, ys, strict=True) if x >= IGNORED_FRACTION * last]
            lows += ys
            highs += late
    if not highs:
        return 0.0, 1.0
    low, high = min(lows), max(highs)
    margin = 0.04 * (high - low) or 0.1
    return low - margin, high + margin


def interpolate(points: Series, x: float) -> float | None:
    """The value at `x` on the straight line between its neighbours; None outside the points."""
    xs, ys = points
    for i in range(1, len(xs)):
        if xs[i - 1] <= x <= xs[i]:
            share = (x - xs[i - 1]) / (xs[i] - xs[i - 1]) if xs[i] > xs[i - 1] else 1.0
            return ys[i - 1] + share * (ys[i] - ys[i - 1])
    return None


def equal_budgets(arms: Sequence[Arm]) -> list[Record]:
    """The validation loss that each arm had when the one with the least of each budget ended."""
    rows = []
    for key, title in BUDGETS.items():
        curves = {arm.name: validation_curve(arm, key) for arm in arms}
        if len(arms) < 2 or not all(xs for xs, _ in curves.values()):
            continue
        budget = min(xs[-1] for xs, _ in curves.values())
        losses = {name: interpolate(curve, budget) for name, curve in curves.items()}
        rows.append({"key": key, "title": title, "budget": budget, "losses": losses})
    return rows


def by_layer(records: Sequence[Record], key: str) -> list[list[float]]:
    """A per-layer field as one list over the records per layer; the largest value where a layer has several."""

    def largest(value: list[float] | float) -> float:
        return max(value) if isinstance(value, list) else value

    return [[largest(r[key][i]) for r in records] for i in range(len(records[0][key]))]


def expert_shares(records: Sequence[Record], layer: int) -> tuple[list[float], list[list[float]]]:
    """Step edges (columns + 1) and each expert's mean share over equal numbers of records, at most MAX_COLUMNS."""
    stretch = -(-len(records) // MAX_COLUMNS)
    groups = [records[i : i + stretch] for i in range(0, len(records), stretch)]
    experts = range(len(records[0]["load"][layer]))
    shares = [[sum(r["load"][layer][e] for r in group) / len(group) for group in groups] for e in experts]
    return [0.0] + [float(group[-1]["step"]) for group in groups], shares
