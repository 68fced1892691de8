"""`write_report`: gather what the run folders say and fill `template.html`.

Each `make_*` function prepares one section; one that has nothing to show returns None or an empty list, and the
template leaves its section out.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from nanokimi.report import plots, units
from nanokimi.report.incidents import incident_lines, skipped_batches
from nanokimi.report.metrics import COSTS, PICTURE_COSTS, make_costs, make_table, make_tiles
from nanokimi.report.picture import comparison_png
from nanokimi.report.plots import FLAT, NARROW, WIDE, svg
from nanokimi.report.records import BUDGETS, Arm, Record, equal_budgets, read_comparison
from nanokimi.runtime.files import write_atomic

ROUTER_PANELS = (
    ("load_cv", "Load CV", "Deviation / mean"),
    ("max_violation", "Max violation", "Busiest / fair share - 1"),
    ("router_entropy", "Router entropy", "Nats"),
    ("dead_experts", "Dead experts", "Experts without a token"),
)
SEGMENT_COLUMNS = (
    ("train_loss", "train loss", units.fixed),
    ("val_loss", "val. loss", units.fixed),
    ("tokens_per_second", "tokens/s", units.count),
    ("ms_per_step", "ms/step", units.plain),
)


def make_interval(verdict: Record, arms: Sequence[Arm]) -> Record | None:
    """What was subtracted, and where it and its interval lie on a strip, in percent; None if nothing is ranked."""
    if not verdict["ranked"] or not verdict.get("ci95_nats"):
        return None
    low, high = verdict["ci95_nats"]
    reach = 1.15 * max(abs(low), abs(high), abs(verdict["difference_nats"])) or 1.0
    what = "Difference"
    if len(arms) == 2:
        first, second = arms
        straight = (verdict["difference_nats"] < 0) == (first.facts["test_loss"] < second.facts["test_loss"])
        what = f"{first.name} minus {second.name}" if straight else f"{second.name} minus {first.name}"
    places = [round(50 + 50 * value / reach, 2) for value in (low, verdict["difference_nats"], high)]
    return {"low": places[0], "middle": places[1], "high": places[2], "what": what}


def make_score_bars(arms: Sequence[Arm], baselines: Record) -> list[Record]:
    """Bits per byte of the models and of the counting baselines, with the length of each bar."""
    scores: list[tuple[str, int | None, Any]] = [
        (arm.label, arm.slot, arm.facts.get("val_bits_per_byte")) for arm in arms
    ]
    scores += [(name, None, baseline["bits_per_byte"]) for name, baseline in baselines.items()]
    measured = [score for score in scores if score[2] is not None]
    top = max((value for _, _, value in measured), default=1.0)
    return [
        {"name": name, "slot": slot, "text": units.fixed(value), "share": value / top}
        for name, slot, value in measured
    ]


def make_loss_figures(arms: Sequence[Arm], baselines: Record) -> list[str]:
    """The four loss panels."""
    if not any(arm.kind("eval") or arm.kind("train") for arm in arms):
        return []
    return [svg(f"Loss by {key}", WIDE, plots.draw_loss, arms, key, baselines) for key in BUDGETS]


def make_position(arms: Sequence[Arm]) -> Record | None:
    """The figure, and the loss at the 1st, 4th, 16th, ... and the last position."""
    losses = [arm.facts.get("loss_by_position") or [] for arm in arms]
    longest = max(len(row) for row in losses)
    if not longest:
        return None
    shown = [4**i for i in range(20) if 4**i < longest] + [longest]
    rows = [(place, [row[place - 1] if place <= len(row) else None for row in losses]) for place in shown]
    return {"svg": svg("Loss by position", WIDE, plots.draw_position, arms), "rows": rows}


def make_cost_bars(arms: Sequence[Arm]) -> list[Record]:
    """Each cost: the arms' numbers, and their shares of the dearest."""
    return [
        {
            "title": title,
            "bars": [(*bar, bar[2] / (max(values) or 1)) for bar in zip(arms, texts, values, strict=True)],
        }
        for title, texts, values in make_costs(arms, COSTS)
    ]


def make_memory(arms: Sequence[Arm]) -> str | None:
    """The figure."""
    measured = any("memory_bytes" in record for arm in arms for record in arm.kind("train"))
    return svg("Memory", WIDE, plots.draw_memory, arms) if measured else None


def make_router(arm: Arm) -> Record | None:
    """Heat maps and lines of one arm's router; None for an arm without one."""
    records = arm.kind("router")
    if not records:
        return None
    maps, lines = [], []
    for i, layer in enumerate(records[0]["layers"]):
        name = f"Expert load of {arm.name}, layer {layer}"
        maps.append((f"Layer {layer}", svg(name, FLAT, plots.draw_experts, arm, i)))
    dead = max(max(record["dead_experts"]) for record in records)
    for key, title, y_label in ROUTER_PANELS:
        if key != "dead_experts" or dead:
            lines.append((title, svg(f"{title} of {arm.name}", NARROW, plots.draw_router, arm, key, y_label)))
    if any(record.get("aux_loss") is not None for record in arm.kind("train")):
        lines.append(
            (
                "Auxiliary (balance) loss",
                svg(f"Auxiliary loss of {arm.name}", NARROW, plots.draw_aux_loss, arm),
            )
        )
    return {"arm": arm, "maps": maps, "lines": lines, "dead": dead, "experts": len(records[0]["load"][0])}


def make_attention(arm: Arm) -> Record | None:
    """Logit telemetry of one arm; None for an arm without it."""
    records = arm.kind("attention")
    if not records:
        return None
    figures = [svg(f"Largest attention logit of {arm.name}", WIDE, plots.draw_logits, arm)]
    clips = sum(record["clips"] for record in records)
    if clips:
        figures.append(svg(f"Heads clipped in {arm.name}", WIDE, plots.draw_clips, arm))
    largest = max(max(layer) for record in records for layer in record["max_logits"])
    return {"arm": arm, "figures": figures, "clips": clips, "largest": largest, "tau": records[-1]["tau"]}


WORLD_ROWS = (
    ("grammatical", "Grammatical"),
    ("consistent", "Grammatical, and no wrong fact"),
    ("complete", "Complete"),
    ("perfect", "All three"),
)


def make_world(arms: Sequence[Arm]) -> Record | None:
    """What the story world's judge and its questions say; None unless the arms were trained on tales."""
    asked = [arm for arm in arms if arm.facts.get("tales")]
    if not asked:
        return None
    judged = [(title, [arm.facts["tales"]["judged"][key] for arm in asked]) for key, title in WORLD_ROWS]
    distances = list(asked[0].facts["tales"]["recall"])
    recalled = [(words, [arm.facts["tales"]["recall"][words] for arm in asked]) for words in distances]
    errors = [(arm, arm.facts["tales"]["judged"]["examples"]) for arm in asked]
    return {"arms": asked, "judged": judged, "recalled": recalled, "errors": errors}


def make_stories(arms: Sequence[Arm]) -> list[Record]:
    """Samples by step and prompt: what each arm wrote at the same moment of its training."""
    steps: dict[int, dict[str, list[Record]]] = {}
    for arm in arms:
        for record in arm.kind("sample"):
            prompt, text = record["prompt"], record["text"]
            told = {**record, "arm": arm, "text": text.removeprefix(prompt)}
            steps.setdefault(record["step"], {}).setdefault(prompt, []).append(told)
    return [{"step": step, "prompts": steps[step]} for step in sorted(steps)]


def make_context(report: Record, arms: Sequence[Arm]) -> Record:
    """Everything that the template shows."""
    verdict, data = report["verdict"], report["data"]
    baselines = data.get("baselines") or {}
    table = make_table(arms, verdict)
    return {
        "report": report,
        "verdict": verdict,
        "interval": make_interval(verdict, arms),
        "data": data,
        "machine": report["machine"],
        "paired": report.get("paired"),
        "arms": arms,
        "leaking": [arm for arm in arms if arm.leaking],
        "tiles": {arm.name: make_tiles(arm, arms, verdict) for arm in arms},
        "same_tokens": len({arm.facts["tokens"] for arm in arms}) == 1,
        "baselines": baselines,
        "score_bars": make_score_bars(arms, baselines),
        "loss_figures": make_loss_figures(arms, baselines),
        "incidents": [(arm, lines) for arm in arms if (lines := incident_lines(arm))],
        "spiking": any(arm.spikes for arm in arms),
        "skipping": any(skipped_batches(arm) for arm in arms),
        "equal_budgets": equal_budgets(arms),
        "position": make_position(arms),
        "cost_bars": make_cost_bars(arms),
        "table": table,
        "segments": report.get("segments") or [],
        "segment_columns": SEGMENT_COLUMNS,
        "memory": make_memory(arms),
        "memory_rows": [row for group in table for row in group["rows"] if "emory" in row["title"]],
        "routers": [router for arm in arms if (router := make_router(arm))],
        "attentions": [attention for arm in arms if (attention := make_attention(arm))],
        "stories": make_stories(arms),
        "world": make_world(arms),
        "units": units,
        "colours": plots.PAPER.arms,
    }


def render(context: Record, template: str = "template.html") -> str:
    """The page. Everything from a run is escaped; the figures alone are marked safe, in the template."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    def source(name: str) -> str:
        return resources.files("nanokimi.report").joinpath(name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(context).lstrip()


def write_report(folder: Path) -> None:
    """Write report.html and comparison.png into a comparison folder, from report.json and the arms' records.

    Raises UserError if one of them is missing or of another version.
    """
    report, arms = read_comparison(folder)
    write_atomic(folder / "report.html", render(make_context(report, arms)))
    write_atomic(folder / "comparison.png", comparison_png(report, arms, make_costs(arms, PICTURE_COSTS)))
