"""The scores of each text of a mixture, such as a language: over an arm's seeds, for a page and for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from nanokimi.report import units
from nanokimi.report.records import Arm, Record


def source_means(runs: Sequence[Mapping[str, Any]], part: str = "test") -> dict[str, Record]:
    """Each text's mean loss and bits per byte over runs, the latter's deviation, and the floor (nats per token).

    The floor is None where it is unknown. Empty without a mixture.
    """
    scores = [run[f"{part}_sources"] for run in runs if run.get(f"{part}_sources")]
    means = {}
    for name in scores[0] if scores else ():
        bits = [one[name]["bits_per_byte"] for one in scores]
        means[name] = {
            "loss": fmean(one[name]["loss"] for one in scores),
            "bits_per_byte": fmean(bits),
            "deviation": stdev(bits) if len(bits) > 1 else None,
            "floor": scores[0][name].get("floor"),
        }
    return means


def source_words(scores: Mapping[str, Mapping[str, float]]) -> str:
    """One run's bits per byte, text by text, in a line."""
    return ", ".join(f"{name} {one['bits_per_byte']:.4f}" for name, one in scores.items())


def make_sources(data: Record, arms: Sequence[Arm]) -> Record | None:
    """The page's tables of a mixture: bits per byte and loss of each text, and how its training tokens were used."""
    sources = data.get("sources") or []
    means = [source_means([run.metadata for run in arm.runs]) for arm in arms]
    if not sources or not all(means):
        return None
    names = [one["name"] for one in sources]
    bits = [
        (name, [units.spread(mean[name]["bits_per_byte"], mean[name]["deviation"]) for mean in means])
        for name in names
    ]
    losses = [(name, [units.fixed(mean[name]["loss"]) for mean in means]) for name in names]
    tokens = max(run.metadata["tokens"] for arm in arms for run in arm.runs)
    used = [
        {
            "name": one["name"],
            "path": one["path"],
            "share": f"{one['share']:.1%}",
            "train": units.count(one["train_tokens"]),
            "passes": units.significant(one["share"] * tokens / one["train_tokens"]),
            "val": units.count(one["val_tokens"]),
            "test": units.count(one["test_tokens"]),
            "floor": units.fixed(means[0][one["name"]]["floor"]),
        }
        for one in sources
    ]
    has_floor = any(one["floor"] is not None for one in means[0].values())
    return {"bits": bits, "losses": losses, "used": used, "has_floor": has_floor}
