"""What the folders of a comparison hold: each arm's metadata, its runs and their records, and series made from them.

All of it is plain Python on lists, which is fast enough for the records of a report and easy to check in tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nanokimi.errors import UserError
from nanokimi.runtime.files import read_json, read_json_lines

SCHEMA_VERSION = 2
MAX_POINTS = 400
MAX_COLUMNS = 120
MAX_SPIKES = 25
SLOTS = 8
"""The number of colours, of dashes and of marks."""
TOLD_APART = "Dashes and marks together tell the arms apart."
"""Said in a legend of more arms than there are dashes."""
SMOOTHED_FRACTION = 0.02
IGNORED_FRACTION = 0.05

CAUSAL, LEAKING, NONDETERMINISTIC, NOT_AUDITED = "causal", "LEAKING", "NONDETERMINISTIC", "not audited"
UNDECIDED = "UNDECIDED"
OUTCOMES = (LEAKING, NONDETERMINISTIC, UNDECIDED, NOT_AUDITED, CAUSAL)
"""The possible outcomes of an audit, the worst first."""

Record = dict[str, Any]
Series = tuple[list[float], list[float]]


class Band(NamedTuple):
    """A curve over seeds: their mean, the lowest and the highest at each place."""

    xs: list[float]
    means: list[float]
    lows: list[float]
    highs: list[float]

    @property
    def mean(self) -> Series:
        """The curve of the mean."""
        return self.xs, self.means


class Style(NamedTuple):
    """How an arm is drawn: the number of its colour, of its dashes and of its mark."""

    colour: int
    dash: int
    mark: int


def style_of(slot: int) -> Style:
    """The style of the arm with this number. The three go round at different speeds.

    So the first 64 arms differ without colours, too; and of the first 32 any two differ in two of the three.
    """
    lap, place = divmod(slot, SLOTS)
    return Style((place + 3 * lap) % SLOTS, place, (place + lap) % SLOTS)


X_AXES = {
    "step": "Optimizer steps",
    "tokens": "Training tokens",
    "flops": "Training FLOPs",
    "train_seconds": "Training time (s)",
}
"""The budgets that a loss can be drawn against, with the label of that axis."""

BASELINE_NAMES = {"attainable_floor": "attainable floor", "floor": "floor (entropy of the text)"}
"""The names on the page of baselines whose names in report.json are not words."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """An arm trained with one seed."""

    seed: int
    metadata: Record
    """Its entry in report.json."""
    records: list[Record]
    """Its metrics.jsonl."""

    def kind(self, kind: str) -> list[Record]:
        """Its records of one kind, in order."""
        return [record for record in self.records if record["kind"] == kind]

    @property
    def audit(self) -> str:
        """One of OUTCOMES. Early results have no verdict and say only whether the model was causal."""
        audit = self.metadata.get("audit")
        if not audit:
            return NOT_AUDITED
        said = str(audit.get("verdict") or (CAUSAL if audit.get("causal") else LEAKING)).lower()
        return next((outcome for outcome in OUTCOMES if outcome.lower() == said), NOT_AUDITED)

    @property
    def spikes(self) -> list[Record]:
        """Its loss spikes (`step`; `loss` and `usual` in nats per token), the largest rise above the usual first."""
        return sorted(self.metadata.get("spikes") or [], key=lambda s: s["usual"] - s["loss"])


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A name, a model and an optimizer, with one run for each seed."""

    name: str
    slot: int
    """Its place in the comparison, which decides its style."""
    metadata: Record
    """Its entry in report.json: means over its seeds."""
    runs: tuple[Run, ...]
    """In the order of the seeds; empty if the arm was refused before training."""

    @property
    def style(self) -> Style:
        """Its colour, dashes and mark."""
        return style_of(self.slot)

    def kind(self, kind: str) -> list[Record]:
        """The records of one kind of its first seed."""
        return self.runs[0].kind(kind) if self.runs else []

    @property
    def audit(self) -> str:
        """The worst outcome among the audits of its runs."""
        said = {run.audit for run in self.runs} or {NOT_AUDITED}
        return next(outcome for outcome in OUTCOMES if outcome in said)

    @property
    def sound(self) -> bool:
        """Whether its numbers may be ranked. A model that is random or was not audited may see the future."""
        return self.audit == CAUSAL

    @property
    def leaking(self) -> bool:
        """Whether the audit found that it sees the future."""
        return self.audit == LEAKING

    @property
    def label(self) -> str:
        """Its name, with the audit's outcome if it is not sound, for every figure and table."""
        return self.name if self.sound else f"{self.name} ({self.audit})"

    @property
    def smoothing(self) -> int:
        """Steps over which its training loss is averaged in the figures."""
        return max(1, round(SMOOTHED_FRACTION * len(self.kind("train"))))


def read_comparison(folder: Path) -> tuple[Record, list[Arm]]:
    """report.json and its arms. Raises UserError if a file is missing or of another version."""
    report = read_json(folder / "report.json")
    if report.get("schema_version") != SCHEMA_VERSION:
        raise UserError(_of_another_version(folder / "report.json", report))
    runs: dict[str, list[Run]] = {entry["name"]: [] for entry in report["arms"]}
    for metadata in report["runs"]:
        path = folder / metadata["folder"] / "metrics.jsonl"
        if not path.exists():
            raise UserError(
                f"cannot read {path}: the comparison names this run but its records are not there"
            )
        runs[metadata["arm"]].append(
            Run(seed=metadata["seed"], metadata=metadata, records=read_json_lines(path))
        )
    arms = [
        Arm(name=entry["name"], slot=slot, metadata=entry, runs=tuple(runs[entry["name"]]))
        for slot, entry in enumerate(report["arms"])
    ]
    return report, arms


def _of_another_version(path: Path, report: Record) -> str:
    packages = (report.get("machine") or {}).get("packages") or {}
    writer = f"nanokimi {packages['nanokimi']}" if packages.get("nanokimi") else "another nanokimi"
    return (
        f"{path} was written by {writer} with schema_version {report.get('schema_version')}, this program reads "
        f"{SCHEMA_VERSION}: repeat the comparison, or make its page with the version that wrote it"
    )


def fewest_seeds(arms: Sequence[Arm]) -> int:
    """The fewest seeds of any arm that was trained. With one seed nothing is ranked."""
    return min((len(arm.runs) for arm in arms if arm.runs), default=0)


def winner_name(verdict: Record, arms: Sequence[Arm]) -> str | None:
    """The verdict's winner; None with one seed, or if the winner is not sound."""
    sound = {arm.name for arm in arms if arm.sound}
    allowed = verdict["ranked"] and fewest_seeds(arms) > 1 and verdict["winner"] in sound
    return verdict["winner"] if allowed else None


def baseline_scores(data: Record, arms: Sequence[Arm]) -> list[Record]:
    """Each baseline's name, bits per byte and loss in nats per token, the worst first.

    gzip has no tokens, so its loss is its bits divided by the tokens that the models predict. The attainable floor
    depends on the windows, so the runs have it. If documents do not fit into them, it is only known to be higher.
    """
    entries = dict(data.get("baselines") or {})
    runs = [run.metadata for arm in arms for run in arm.runs]
    if "floor" in entries and runs and "attainable_floor" not in entries:
        entries["attainable_floor"] = {"test_loss": runs[0].get("attainable_floor")}
    per_byte = data["test_text_bytes"] / data["test_tokens"] * math.log(2)
    scores = []
    for key, entry in entries.items():
        nats, bits = entry.get("test_loss"), entry.get("bits_per_byte")
        nats = bits * per_byte if nats is None and bits is not None else nats
        bits = nats / per_byte if bits is None and nats is not None else bits
        scores.append({"key": key, "name": BASELINE_NAMES.get(key, key), "nats": nats, "bits_per_byte": bits})
    return sorted(scores, key=lambda s: -(s["bits_per_byte"] or 0.0))


def series(records: Sequence[Record], x_key: str, y_key: str) -> Series:
    """The points that two fields make, without the records that lack either."""
    points = [(r[x_key], r[y_key]) for r in records if r.get(x_key) is not None and r.get(y_key) is not None]
    return [x for x, _ in points], [y for _, y in points]


def mean_series(runs: Sequence[Run], kind: str, x_key: str, y_key: str) -> Series:
    """The mean over runs of two fields, at the steps that all runs have."""
    points: dict[int, list[tuple[float, float]]] = {}
    for run in runs:
        for record in run.kind(kind):
            if record.get(x_key) is not None and record.get(y_key) is not None:
                points.setdefault(record["step"], []).append((record[x_key], record[y_key]))
    shared = [pairs for _, pairs in sorted(points.items()) if len(pairs) == len(runs)]
    means = [[sum(column) / len(pairs) for column in zip(*pairs, strict=True)] for pairs in shared]
    return [x for x, _ in means], [y for _, y in means]


def spread_series(runs: Sequence[Run], kind: str, x_key: str, y_key: str, window: int = 1) -> Band:
    """The mean, the lowest and the highest of a field over runs, at the steps that all runs have."""
    curves = []
    for run in runs:
        found = [r for r in run.kind(kind) if r.get(x_key) is not None and r.get(y_key) is not None]
        smooth = trailing_mean([r[y_key] for r in found], window)
        curves.append({r["step"]: (r[x_key], y) for r, y in zip(found, smooth, strict=True)})
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    points = [[curve[step] for curve in curves] for step in steps]
    kept = thin(([float(i) for i in range(len(points))], [0.0] * len(points)))[0]
    points = [points[int(i)] for i in kept]
    return Band(
        [sum(x for x, _ in pairs) / len(pairs) for pairs in points],
        [sum(y for _, y in pairs) / len(pairs) for pairs in points],
        [min(y for _, y in pairs) for pairs in points],
        [max(y for _, y in pairs) for pairs in points],
    )


def trailing_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and the `window - 1` values before it, or fewer at the start."""
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


def training_curve(runs: Sequence[Run], x_key: str, y_key: str = "loss", *, window: int = 1) -> Series:
    """A field of the training records, averaged over runs and the last `window` steps; at most MAX_POINTS points."""
    xs, ys = mean_series(runs, "train", x_key, y_key)
    return thin((xs, trailing_mean(ys, window)))


def validation_curve(runs: Sequence[Run], x_key: str) -> Series:
    """The validation loss at each evaluation, averaged over runs; at most MAX_POINTS points."""
    return thin(mean_series(runs, "eval", x_key, "val_loss"))


def spike_places(run: Run, x_key: str) -> list[float]:
    """The positions of the run's MAX_SPIKES highest spikes on the axis of a budget."""
    at = {record["step"]: record.get(x_key) for record in run.kind("train")}
    places = [at.get(spike["step"]) for spike in run.spikes[:MAX_SPIKES]]
    return [place for place in places if place is not None]


def peaks(points: Series, limit: int = MAX_POINTS) -> Series:
    """At most `limit` points, each the largest value of its block, so that no spike is lost."""
    xs, ys = points
    block = -(-len(xs) // limit) or 1
    starts = range(0, len(xs), block)
    return [xs[min(i + block, len(xs)) - 1] for i in starts], [max(ys[i : i + block]) for i in starts]


def loss_limits(curves: Sequence[Series]) -> tuple[float, float]:
    """The loss axis for curves by step. High values in the first steps (IGNORED_FRACTION) do not count."""
    last = max((xs[-1] for xs, _ in curves if xs), default=0)
    lows = [y for _, ys in curves for y in ys]
    highs = [y for xs, ys in curves for x, y in zip(xs, ys, strict=True) if x >= IGNORED_FRACTION * last]
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
    """For each budget, every arm's validation loss (mean over seeds) when the arm with the smallest budget ended."""
    rows = []
    for key, title in X_AXES.items():
        curves = {arm.name: validation_curve(arm.runs, key) for arm in arms if arm.runs}
        if len(curves) < 2 or not all(xs for xs, _ in curves.values()):
            continue
        budget = min(xs[-1] for xs, _ in curves.values())
        losses = {name: interpolate(curve, budget) for name, curve in curves.items()}
        rows.append({"key": key, "title": title, "budget": budget, "losses": losses})
    return rows


def by_layer(records: Sequence[Record], key: str) -> list[list[float]]:
    """A field with a value for each layer, as one list over records per layer. Of several values the largest counts."""

    def largest(value: list[float] | float) -> float:
        return max(value) if isinstance(value, list) else value

    return [[largest(r[key][i]) for r in records] for i in range(len(records[0][key]))]


def expert_shares(
    records: Sequence[Record], layer: int, x_key: str = "step"
) -> tuple[list[float], list[list[float]]]:
    """Edges on the axis of a budget (columns + 1), and each expert's mean share in each column.

    There are at most MAX_COLUMNS columns.
    """
    block = -(-len(records) // MAX_COLUMNS)
    groups = [records[i : i + block] for i in range(0, len(records), block)]
    experts = range(len(records[0]["load"][layer]))
    shares = [[sum(r["load"][layer][e] for r in group) / len(group) for group in groups] for e in experts]
    return [0.0] + [float(group[-1][x_key]) for group in groups], shares
