"""What a longer search changed in the ablation study on tinyshakespeare: its results with 32 trials, and with 66.

docs/results/old/short-search.jsonl has every arm and verdict of the study with the short search.
"""

from __future__ import annotations

from one_rate_table import before, spread, told, verdict_of
from recorded import RESULTS
from study_tables import study_report

from nanokimi.runtime.files import read_json_lines

STUDY = "ladder-shakespeare"
HEAD = (
    *("searched arm", "32 trials: the best trial, one seed", "the same, five other seeds"),
    *("66 trials: the best trial", "the same, five other seeds", "test loss then", "now"),
)


def short_search_arms_table() -> str:
    """The searched arms' validation losses, of the best trial and over the seeds that judge, and their test losses."""
    rows = [row for row in read_json_lines(RESULTS / f"{STUDY}.jsonl") if row.get("purpose") == "seed"]
    # by their test loss, because arms may share runs under several names
    val_losses = {row["test_loss"]: row["val_loss"] for row in rows}
    then = before("arm", STUDY, "short-search")
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for arm in study_report(RESULTS / f"{STUDY}.jsonl")["arms"]:
        if arm["budget"] != "tokens" or arm["tuning"]["kind"] != "search":
            continue
        old = then[arm["name"]]
        judged = [val_losses[loss] for loss in arm["losses"]]
        cells = [f"{old['loss_in_search']:.4f}", spread(old["val_losses"])]
        cells += [f"{arm['tuning']['loss']:.4f}", spread(judged)]
        cells += [spread(old["test_losses"]), spread(arm["losses"])]
        lines.append(f"| {arm['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def short_search_verdicts_table() -> str:
    """The lead over both NanoGPTs, and each verdict that changed."""
    lines = ["| comparison | 32 trials: difference, interval, p after Holm | 66 trials |", "|---|---|---|"]
    now = {one["name"]: one for one in study_report(RESULTS / f"{STUDY}.jsonl")["effects"]}
    leads = ("NanoKimi against NanoGPT, per token", "NanoKimi against NanoGPT with Muon, per token")
    for name, old in before("effect", STUDY, "short-search").items():
        if name in leads or verdict_of(old) != verdict_of(now[name]):
            lines.append(f"| {name} | {told(old)} | {told(now[name])} |")
    return "\n".join(lines)
