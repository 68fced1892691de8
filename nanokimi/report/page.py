"""`write_report`: collect what the run folders hold, and fill `template.html`.

Each `make_*` function prepares one section. If it has nothing to show it returns None or an empty list, and the
template leaves the section out.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from nanokimi.report import plots, telemetry, units
from nanokimi.report.by_source import make_sources
from nanokimi.report.incidents import incident_lines, skipped_batches
from nanokimi.report.metrics import (
    BITS_PER_BYTE,
    COSTS,
    PICTURE_COSTS,
    TILES,
    TOKENS,
    Metric,
    make_costs,
    make_rows,
    make_table,
    value_of,
)
from nanokimi.report.pairs import caveats, headline, make_seeds, make_strip, spread_words
from nanokimi.report.picture import comparison_png
from nanokimi.report.plots import FLAT, NARROW, WIDE, svg
from nanokimi.report.records import (
    Arm,
    Record,
    baseline_scores,
    equal_budgets,
    fewest_seeds,
    read_comparison,
    winner_name,
)
from nanokimi.report.searched import alike, make_searches
from nanokimi.report.switched import make_switched
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


def make_score_bars(arms: Sequence[Arm], baselines: Sequence[Record]) -> list[Record]:
    """Bits per byte of the models and of the counting baselines, with the length of each bar."""
    scores: list[tuple[str, int | None, Any]] = [
        (arm.label, arm.slot, value_of(arm, BITS_PER_BYTE)) for arm in arms
    ]
    scores += [(baseline["name"], None, baseline["bits_per_byte"]) for baseline in baselines]
    measured = [score for score in scores if score[2] is not None]
    top = max((value for _, _, value in measured), default=1.0)
    return [
        {"name": name, "slot": slot, "text": units.fixed(value), "share": value / top}
        for name, slot, value in measured
    ]


def make_equal_rows(arms: Sequence[Arm]) -> list[tuple[str, list[str]]]:
    """Rows of the table of equal budgets: the budget, its amount, and each arm's loss."""
    names = {
        "step": ("steps", units.count),
        "tokens": ("tokens", units.count),
        "flops": ("FLOPs", units.short),
        "train_seconds": ("time", units.seconds),
    }
    rows = []
    for row in equal_budgets(arms):
        name, show = names[row["key"]]
        losses = [units.fixed(row["losses"].get(arm.name)) for arm in arms]
        rows.append((f"{name}: {show(row['budget'])}", losses))
    return rows


def make_position(arms: Sequence[Arm]) -> Record | None:
    """The figure of the loss by position, and rows with it at the 1st, 4th, 16th, ... and last position."""
    losses = [plots.position_losses(arm) for arm in arms]
    longest = max(len(row) for row in losses)
    if not longest:
        return None
    shown = [4**i for i in range(20) if 4**i < longest] + [longest]
    rows = [
        (units.count(place), [units.fixed(row[place - 1] if place <= len(row) else None) for row in losses])
        for place in shown
    ]
    return {"svg": svg("Loss by position", WIDE, plots.draw_position, arms), "rows": rows}


def make_cost_bars(arms: Sequence[Arm], metrics: Sequence[Metric] = COSTS) -> list[Record]:
    """For each cost the arms' numbers, also as shares of the highest."""
    return [
        {
            "title": title,
            "bars": [(*bar, bar[2] / (max(values) or 1)) for bar in zip(arms, texts, values, strict=True)],
        }
        for title, texts, values, _ in make_costs(arms, metrics)
    ]


def make_memory(arms: Sequence[Arm]) -> str | None:
    """The figure of the memory in use by step."""
    measured = any("memory_bytes" in record for arm in arms for record in arm.kind("train"))
    return svg("Memory", WIDE, plots.draw_memory, arms) if measured else None


def make_router(arm: Arm) -> Record | None:
    """Heat maps and lines of one arm's router; None for an arm without a router."""
    records = arm.kind("router")
    if not records:
        return None
    maps, lines = [], []
    for i, layer in enumerate(records[0]["layers"]):
        name = f"Expert load of {arm.name}, layer {layer}"
        maps.append((f"Layer {layer}", svg(name, FLAT, telemetry.draw_experts, arm, i)))
    dead = max(max(record["dead_experts"]) for record in records)
    for key, title, y_label in ROUTER_PANELS:
        if key != "dead_experts" or dead:
            figure = svg(f"{title} of {arm.name}", NARROW, telemetry.draw_router, arm, key, y_label)
            lines.append((title, figure))
    if any(record.get("aux_loss") is not None for record in arm.kind("train")):
        figure = svg(f"Auxiliary loss of {arm.name}", NARROW, telemetry.draw_aux_loss, arm)
        lines.append(("Auxiliary (balance) loss", figure))
    return {"arm": arm, "maps": maps, "lines": lines, "dead": dead, "experts": len(records[0]["load"][0])}


def make_attention(arm: Arm) -> Record | None:
    """Figures of one arm's attention logits; None if they were not recorded."""
    records = arm.kind("attention")
    if not records:
        return None
    figures = [svg(f"Largest attention logit of {arm.name}", WIDE, telemetry.draw_logits, arm)]
    clips = sum(record["clips"] for record in records)
    if clips:
        figures.append(svg(f"Heads clipped in {arm.name}", WIDE, telemetry.draw_clips, arm))
    largest = max(max(layer) for record in records for layer in record["max_logits"])
    return {"arm": arm, "figures": figures, "clips": clips, "largest": largest, "tau": records[-1]["tau"]}


WORLD_ROWS = (
    ("grammatical", "Grammatical"),
    ("consistent", "Grammatical, and no wrong fact"),
    ("complete", "Complete"),
    ("perfect", "All three"),
)


def make_world(arms: Sequence[Arm]) -> Record | None:
    """How the story world's parser and questions judge each arm's first seed; None if no arm was trained on tales."""
    asked = [arm for arm in arms if arm.runs and arm.runs[0].metadata.get("tales")]
    if not asked:
        return None
    tales = [arm.runs[0].metadata["tales"] for arm in asked]
    judged = [(title, [one["judged"][key] for one in tales]) for key, title in WORLD_ROWS]
    right = [one["judged"]["right_before_first_error"] for one in tales]
    recalled = [(words, [one["recall"][words] for one in tales]) for words in tales[0]["recall"]]
    errors = [(arm, one["judged"]["examples"]) for arm, one in zip(asked, tales, strict=True)]
    return {"arms": asked, "judged": judged, "right": right, "recalled": recalled, "errors": errors}


def make_stories(arms: Sequence[Arm]) -> list[Record]:
    """Samples by step and prompt: what each arm's first seed wrote at the same point of its training."""
    steps: dict[int, dict[str, list[Record]]] = {}
    for arm in arms:
        for record in arm.kind("sample"):
            prompt, text = record["prompt"], record["text"]
            story = {**record, "arm": arm, "text": text.removeprefix(prompt)}
            steps.setdefault(record["step"], {}).setdefault(prompt, []).append(story)
    return [{"step": step, "prompts": steps[step]} for step in sorted(steps)]


def make_segments(arms: Sequence[Arm], segments: Sequence[Record]) -> list[Record]:
    """A table for each arm: rows of its numbers, segment by segment."""
    tables = []
    for arm in arms:
        rows = [
            (one["from_step"], one["to_step"], one["arms"][arm.name])
            for one in segments
            if arm.name in one["arms"]
        ]
        if rows:
            tables.append({"arm": arm, "rows": rows})
    return tables


def make_audits(arms: Sequence[Arm]) -> list[Record]:
    """Each arm's audit outcome, with the details of its first run that had this outcome."""
    audits = []
    for arm in arms:
        worst = [run for run in arm.runs if run.audit == arm.audit] or list(arm.runs)
        metadata = (worst[0].metadata.get("audit") or {}) if worst else {}
        reason = arm.metadata.get("leaking") or metadata.get("where")
        audits.append({"arm": arm, "outcome": arm.audit, "metadata": metadata, "reason": reason})
    return audits


def make_training_words(arms: Sequence[Arm]) -> Record:
    """Tokens, seeds and incidents of the arms' training."""
    runs = [run for arm in arms for run in arm.runs]
    incidents = [(arm, run, lines) for arm in arms for run in arm.runs if (lines := incident_lines(run))]
    return {
        "same_tokens": len({run.metadata["tokens"] for run in runs}) == 1,
        "tokens": [(arm, value_of(arm, TOKENS)) for arm in arms if arm.runs],
        "seeds": list(dict.fromkeys(run.seed for run in runs)),
        "incidents": incidents,
        "spiking": any(run.spikes for run in runs),
        "skipping": any(skipped_batches(run) for run in runs),
    }


def make_first_screen(report: Record, arms: Sequence[Arm], baselines: Sequence[Record]) -> Record:
    """The first screen: headline, caveats, intervals, stories, loss and costs; and the first section under it."""
    floors = {one["key"]: one["nats"] for one in baselines if "floor" in one["key"]}
    seeds = fewest_seeds(arms)
    return {
        "headline": headline(report, arms),
        "caveats": caveats(report, arms, baselines, alike(arms)),
        "winner": winner_name(report["verdict"], arms),
        "spread": spread_words(report) if seeds == 1 and len(arms) > 1 else "",
        "nanogpt_split": report["data"].get("split") == "nanogpt",
        "strip": make_strip(report, arms),
        "stories": last_stories(arms),
        "loss": make_switched("loss", arms, plots.LOSS, baselines),
        "tiles": make_cost_bars(arms, TILES),
        "rows": make_rows(arms, report["verdict"]),
        "baselines": baselines,
        "has_floor": floors.get("floor") is not None,
        "out_of_reach": floors.get("floor") is not None and floors.get("attainable_floor") is None,
        "mixture": bool(report["data"].get("sources")),
        "seeds": seeds,
    }


def last_stories(arms: Sequence[Arm]) -> Record | None:
    """What the arms' first seeds wrote at the end, after their first prompt; None without samples."""
    moments = make_stories(arms)
    if not moments:
        return None
    prompt, told = next(iter(moments[-1]["prompts"].items()))
    return {"step": moments[-1]["step"], "prompt": prompt, "told": told}


def make_context(report: Record, arms: Sequence[Arm]) -> Record:
    """Everything that the template shows."""
    verdict, baselines = report["verdict"], baseline_scores(report["data"], arms)
    table = make_table(arms, verdict)
    return {
        "report": report,
        "verdict": verdict,
        "data": report["data"],
        "machine": report["machine"],
        "arms": arms,
        "unsound": [arm for arm in arms if not arm.sound],
        "first": make_first_screen(report, arms, baselines),
        "training": make_training_words(arms),
        "audits": make_audits(arms),
        "searches": make_searches(arms),
        "sources": make_sources(report["data"], arms),
        "seeds_table": make_seeds(arms),
        "score_bars": make_score_bars(arms, baselines),
        "training_figure": make_switched("training", arms, plots.TRAINING, keys=("step",)),
        "equal_rows": make_equal_rows(arms),
        "position": make_position(arms),
        "cost_bars": make_cost_bars(arms),
        "table": table,
        "marked": any(cell["won"] for group in table for row in group["rows"] for cell in row["cells"]),
        "segments": make_segments(arms, report.get("segments") or []),
        "segment_columns": SEGMENT_COLUMNS,
        "memory": make_memory(arms),
        "memory_rows": [
            (row["title"], [cell["text"] for cell in row["cells"]])
            for group in table
            for row in group["rows"]
            if "emory" in row["title"]
        ],
        "routers": [router for arm in arms if (router := make_router(arm))],
        "attentions": [attention for arm in arms if (attention := make_attention(arm))],
        "stories": make_stories(arms),
        "world": make_world(arms),
        "units": units,
        "colours": plots.PAPER.arms,
    }


def render(context: Record, template: str = "template.html") -> str:
    """The page as HTML. Everything from a run is escaped, and the template marks only the figures as safe."""
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
