"""What the lines, bands and marks of a picture mean, in a line, for a reader who has nothing but the picture."""

from __future__ import annotations

from collections.abc import Sequence

from nanokimi.report.records import Arm

OF_A_STUDY = {
    "effects": "Left of 0: the loss is lower. Line: 95% interval over seeds, which decides; pale band: bootstrap, "
    "which decides nothing; hollow mark: not distinguishable from 0.",
    "scaling": "Dots: runs. Marks: means over seeds. Lines: L = E0 + A / C^alpha, up to twice the compute that was "
    "measured, or straight lines (of logarithms) between the means where that does not describe them.",
    "tuning": "Each line: an arm's loss above that of its best rate; means over the seeds of the tuning.",
}
SPREAD = {
    "loss": "Line: mean of {seeds} seeds; band: from the lowest to the highest.",
    "bits": "Line: mean of {seeds} seeds; band: from the lowest to the highest.",
    "train": "Line: mean of {seeds} seeds; band: from the lowest to the highest.",
    "test": "Mark: mean of {seeds} seeds; line with ends: from the lowest to the highest.",
    "cost": "Bar: mean of {seeds} seeds; line with ends: from the lowest to the highest.",
}
OF_THE_FIRST_SEED = ("experts", "logits")


def how_to_read(kind: str, arms: Sequence[Arm]) -> str:
    """The line below a picture's title; "" if the picture needs none."""
    if kind in OF_A_STUDY:
        return OF_A_STUDY[kind]
    counts = {len(arm.runs) for arm in arms}
    seeds = "the" if len(counts) > 1 else str(*counts)
    said = []
    if kind == "train":
        windows = sorted({arm.smoothing for arm in arms})
        if windows[-1] > 1:
            steps = " or ".join(map(str, windows))
            said.append(f"Each point is the mean of the last {steps} steps.")
    if kind in OF_THE_FIRST_SEED and counts != {1}:
        said.append("The first seed of each arm.")
    elif kind in SPREAD:
        said.append("One seed, so no spread is drawn." if counts == {1} else SPREAD[kind].format(seeds=seeds))
    if kind == "train" and any(run.spikes for arm in arms for run in arm.runs):
        said.append("Hollow marks on the upper edge: loss spikes.")
    return " ".join(said)
