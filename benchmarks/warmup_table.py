"""What it changed that each size of the study of four sizes warms up over the share of its own run that was found.

docs/results/old/scale-tales-warmup.jsonl is the study in which every size warmed up for as many steps as the searched
one, although its runs have other lengths.
"""

from __future__ import annotations

from one_rate_table import spread, told
from recorded import RESULTS, Row
from study_tables import study_report

from nanokimi.runtime.files import read_json_lines

NOW, THEN = RESULTS / "scale-tales.jsonl", RESULTS / "old" / "scale-tales-warmup.jsonl"
WARMUP = "optim.warmup_steps"


def arms_of(report: Row) -> dict[str, Row]:
    """The arms of a study, by name."""
    return {arm["name"]: arm for arm in report["arms"]}


def steps_by_arm() -> dict[str, int]:
    """How long the runs of each arm are."""
    rows = read_json_lines(NOW)
    return {row["arm"]: row["steps"] for row in rows if row.get("purpose") == "seed"}


def warmup_arms_table() -> str:
    """Each arm's warm-up, rate and loss, then and now."""
    lines = [
        "| arm | steps of a run | of them warm-up, then | now | rate, then | now | test loss, then | now |",
        "|---|---|---|---|---|---|---|---|",
    ]
    then, now, steps = arms_of(study_report(THEN)), arms_of(study_report(NOW)), steps_by_arm()
    for name, arm in now.items():
        old = then[name]
        cells = [str(one["tuning"]["best"][WARMUP]) for one in (old, arm)]
        cells += [f"{one['tuning']['best']['optim.lr']:.4g}" for one in (old, arm)]
        cells += [spread(one["losses"]) for one in (old, arm)]
        lines.append(f"| {name} | {steps[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def warmup_verdicts_table() -> str:
    """Every comparison, then and now."""
    lines = ["| comparison | then: difference, interval, p after Holm | now |", "|---|---|---|"]
    now = {one["name"]: one for one in study_report(NOW)["effects"]}
    for old in study_report(THEN)["effects"]:
        lines.append(f"| {old['name']} | {told(old)} | {told(now[old['name']])} |")
    return "\n".join(lines)
