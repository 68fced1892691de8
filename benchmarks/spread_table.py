"""The table of presets that no comparison of ours reports: what the runs that measure their spread say of the arms."""

from __future__ import annotations

from statistics import fmean, stdev

from recorded import PRESETS, RESULTS, Row

from nanokimi.compare.earlier_searches import losses_of, patterns_of
from nanokimi.measure.stats import paired_t, search_variance
from nanokimi.runtime.files import read_json, read_json_lines

REPORTED = ("tales",)
"""Presets with a table of their own, of other runs."""


def losses_of_presets() -> dict[str, dict[str, list[float]]]:
    """For each preset and arm, the test losses of docs/results/spread.jsonl, a seed each.

    A preset measured again, with other settings, counts with the commit of its last row.
    """
    found: dict[str, dict[str, list[float]]] = {}
    rows = read_json_lines(RESULTS / "spread.jsonl")
    newest = {row["preset"]: row["commit"] for row in rows}
    for row in rows:
        if row["preset"] in REPORTED or row["commit"] != newest[row["preset"]]:
            continue
        if not row["nudged"]:
            found.setdefault(row["preset"], {}).setdefault(row["arm"], []).append(row["test_loss"])
    return found


def noise_of(record: Row, losses: list[float]) -> float:
    """The variance that a search adds to an arm. These rows have test losses alone, so the scatter is theirs."""
    return search_variance(losses_of(record), losses, patterns=patterns_of(record))


def spread_table() -> str:
    """NanoKimi minus each other arm of each preset, over the seeds and with the searches' noise."""
    lines = [
        "| preset, seeds | arm | test loss (nats per token) | NanoKimi minus it | 95% interval over seeds "
        "| with the searches' noise |",
        "|---|---|---|---|---|---|",
    ]
    for preset, arms in losses_of_presets().items():
        records = read_json(PRESETS / "searches" / f"{preset}.json")["arms"]
        noise = {arm: noise_of(records[arm], losses) for arm, losses in arms.items()}
        for arm, losses in arms.items():
            cells = [f"`{preset}`, {len(losses)}", arm, f"{fmean(losses):.4f} +- {stdev(losses):.4f}"]
            if arm == "NanoKimi":
                cells += ["", "", ""]
            else:
                alone = paired_t(arms["NanoKimi"], losses)
                whole = paired_t(arms["NanoKimi"], losses, extra_variance=noise["NanoKimi"] + noise[arm])
                cells.append(f"{alone.mean:+.4f}")
                cells += [f"{one.low:+.4f} to {one.high:+.4f}" for one in (alone, whole)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
