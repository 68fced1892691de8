"""What a longer search changed in the studies: their results with 32 trials for each searched arm, and with 66.

docs/results/old/short-search.jsonl has every arm and verdict of the studies with the short search.
"""

from __future__ import annotations

from one_rate_table import SEARCHED_LONGER, TITLES, before, spread, told, verdict_of
from recorded import RESULTS
from study_tables import study_report
from warmup_table import THEN

from nanokimi.runtime.files import read_json_lines

HEAD = (
    *("study", "searched arm", "32 trials: the best trial, one seed", "the same, five other seeds"),
    *("66 trials: the best trial", "the same, five other seeds", "test loss then", "now"),
)
LEADS = ("NanoKimi against NanoGPT, per token", "NanoKimi against NanoGPT with Muon, per token")
"""The comparisons of an ablation study that are shown even if their verdict is the same."""
SIZES = "NanoKimi - "
"""How the names of the other studies' comparisons begin, all of which are shown."""


def short_search_arms_table() -> str:
    """The searched arms' validation losses, of the best trial and over the seeds that judge, and their test losses."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for study in SEARCHED_LONGER:
        rows = [row for row in read_json_lines(RESULTS / f"{study}.jsonl") if row.get("purpose") == "seed"]
        # by their test loss, because arms may share runs under several names
        val_losses = {row["test_loss"]: row["val_loss"] for row in rows}
        then, title = before("arm", study, "short-search"), TITLES[study]
        for arm in study_report(RESULTS / f"{study}.jsonl")["arms"]:
            if arm["budget"] != "tokens" or arm["tuning"]["kind"] != "search":
                continue
            old = then[arm["name"]]
            judged = [val_losses[loss] for loss in arm["losses"]]
            cells = [f"{old['loss_in_search']:.4f}", spread(old["val_losses"])]
            cells += [f"{arm['tuning']['loss']:.4f}", spread(judged)]
            cells += [spread(old["test_losses"]), spread(arm["losses"])]
            lines.append(f"| {title} | {arm['name']} | {' | '.join(cells)} |")
            title = ""
    return "\n".join(lines)


def short_search_verdicts_table() -> str:
    """The lead over both NanoGPTs, and each verdict that changed."""
    lines = [
        "| study | comparison | 32 trials: difference, interval, p after Holm | 66 trials |",
        "|---|---|---|---|",
    ]
    for study in SEARCHED_LONGER:
        # the sizes have had other warm-ups since then (warmup_table.py)
        after = THEN if study == "scale-tales" else RESULTS / f"{study}.jsonl"
        now = {one["name"]: one for one in study_report(after)["effects"]}
        title = TITLES[study]
        for name, old in before("effect", study, "short-search").items():
            shown = name in LEADS or name.startswith(SIZES)
            if shown or verdict_of(old) != verdict_of(now[name]):
                lines.append(f"| {title} | {name} | {told(old)} | {told(now[name])} |")
                title = ""
    return "\n".join(lines)
