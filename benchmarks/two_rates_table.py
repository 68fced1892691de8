"""The table, and the numbers, of what NanoGPT with AdamW gains from a second rate (`two_rates.py`)."""

from __future__ import annotations

from functools import cache
from statistics import fmean, stdev

from recorded import RESULTS, Row, judged

from nanokimi.compare.earlier_searches import losses_of, patterns_of
from nanokimi.measure.stats import SeedDifference, choice_variance, paired_t, search_variance
from nanokimi.runtime.files import read_json_lines

Pair = tuple[float, float]
ONE: Pair = (1.0, 1.0)


def tried_and_scored() -> tuple[dict[Pair, float], dict[Pair, dict[int, Row]]]:
    """The validation loss of each pair with the search's seed; the judged runs of each pair, by seed."""
    tried: dict[Pair, float] = {}
    scored: dict[Pair, dict[int, Row]] = {}
    for row in read_json_lines(RESULTS / "two-rates.jsonl"):
        pair = row["embedding"], row["other"]
        if "test_loss" in row:
            scored.setdefault(pair, {})[row["seed"]] = row
        else:
            tried[pair] = row["val_loss"]
    return tried, scored


def two_rates_table() -> str:
    """Every pair of factors with the search's seed, then the best one judged, also against the comparison's arms."""
    tried, scored = tried_and_scored()
    lines = [
        "| embeddings and head, times the found rate | other weights | validation loss, the search's seed "
        "| test loss, mean over seeds |",
        "|---|---|---|---|",
    ]
    for pair, loss in sorted(tried.items()):
        found = [row["test_loss"] for row in scored.get(pair, {}).values()]
        mean = f"{fmean(found):.4f} +- {stdev(found):.4f} ({len(found)} seeds)" if found else ""
        lines.append(f"| {pair[0]:g} | {pair[1]:g} | {loss:.4f} | {mean} |")
    lines += [
        "",
        "| minus NanoGPT with two rates | difference | 95% interval over seeds | with the searches' noise |",
        "|---|---|---|---|",
    ]
    for arm, (alone, whole) in differences().items():
        lines.append(
            f"| {arm} | {alone.mean:+.4f} | {alone.low:+.4f} to {alone.high:+.4f} "
            f"| {whole.low:+.4f} to {whole.high:+.4f} |"
        )
    return "\n".join(lines)


@cache
def differences() -> dict[str, tuple[SeedDifference, SeedDifference]]:
    """Each arm of the default comparison minus NanoGPT with two rates: over the seeds, and with the searches' noise.

    Both have the noise of NanoGPT's search, which NanoGPT itself shares, and that of choosing among the pairs.
    """
    tried, scored = tried_and_scored()
    (two,) = [pair for pair in scored if pair != ONE]
    second = {seed: row["test_loss"] for seed, row in sorted(scored[two].items())}
    head, runs, *_ = judged("tales-short")
    chosen = choice_variance(
        [[loss] for loss in tried.values()], [row["val_loss"] for row in scored[two].values()]
    )
    found = {}
    noise = {arm: noise_of(record, runs, arm) for arm, record in head["search"].items()}
    for arm in noise:
        first = {run["seed"]: run["test_loss"] for run in runs if run["arm"] == arm}
        extra = noise[arm] + noise["NanoGPT"]
        if arm == "NanoGPT":
            first, extra = {seed: row["test_loss"] for seed, row in scored[ONE].items()}, 0.0
        losses = [first[seed] for seed in second], list(second.values())
        found[arm] = paired_t(*losses), paired_t(*losses, extra_variance=extra + chosen)
    return found


def noise_of(record: Row, runs: list[Row], arm: str) -> float:
    """The variance that an arm's search adds."""
    validation = [run["val_loss"] for run in runs if run["arm"] == arm]
    return search_variance(losses_of(record), validation, patterns=patterns_of(record))


def gain() -> str:
    """By how much a second rate lowers the loss of NanoGPT with AdamW."""
    return f"{differences()['NanoGPT'][0].mean:.3f}"


def lead_left() -> str:
    """NanoKimi's lead over NanoGPT with AdamW at two rates, with the interval that contains the searches' noise."""
    whole = differences()["NanoKimi"][1]
    return f"{-whole.mean:.3f} nats (95% interval {-whole.high:.3f} to {-whole.low:.3f})"
