"""How tokens per second and memory grow with experts, context and width of NanoKimi. Real training steps, MuonClip.

    python benchmarks/scaling.py [--sweeps experts context width] [--out rows.jsonl] [--any.setting VALUE ...]
    python benchmarks/scaling.py --draw rows.jsonl --plot scaling.png   # the last rows of each sweep; measures nothing

Every point is a fresh process that takes the real `train_step` on random tokens, --tokens of them in each step, so
that only the swept size changes; experts go 4 to 64 with 2 chosen, so that the active parameters stay the same.
Points are visited once in each round, in alternating order. Memory is the peak above the idle process. In the plot,
the dashed line is what each size would reach at the best FLOPs per second of the sweep: cost that grows as the
arithmetic does. The picture of docs/performance.md: `--draw docs/results/benchmarks.jsonl --plot docs/scaling.png`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import arms
from common import OtherLoad, finish, options_parser, spread, table
from small_png import smaller
from turns import Worker

from nanokimi.config import RunConfig
from nanokimi.measure.cost import model_cost
from nanokimi.report import units
from nanokimi.report.plots import LINES, PAPER, RC, dress
from nanokimi.runtime.drawing import drawing, png_of
from nanokimi.runtime.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SWEEPS = {
    "experts": (4, 8, 16, 32, 64),
    "context": (64, 128, 256, 512, 1024, 2048, 4096),
    "width": (64, 128, 256, 512, 768),
}
LABELS = {
    "experts": "Experts, 2 of them chosen (log scale)",
    "context": "Context (tokens, log scale)",
    "width": "Width of the model (log scale)",
}
READING = (
    "Mark: median of the rounds; bar: from the slowest round to the fastest (none where there was one round).\n"
    "Dashed: at every size the sweep's best FLOPs per second."
)


def resized(config: RunConfig, sweep: str, value: int, tokens: int) -> RunConfig:
    """The configuration at one point: experts, context, or all widths in proportion with heads of the same size."""
    model, train = config.nanokimi.model, config.train
    if sweep == "experts":
        model = replace(model, n_routed_experts=value)
    elif sweep == "context":
        model = replace(model, max_position_embeddings=value)
        train = replace(train, context_length=value)
    else:
        scale = value / model.hidden_size
        names = (
            "hidden_size",
            "num_attention_heads",
            "kv_lora_rank",
            "intermediate_size",
            "moe_intermediate_size",
        )
        sizes = {name: max(int(getattr(model, name) * scale), 1) for name in names}
        model = replace(model, **sizes)  # type: ignore[arg-type]
    train = replace(train, batch_size=max(tokens // train.context_length, 1))
    return replace(config, train=train, nanokimi=replace(config.nanokimi, model=model))


def measure(config: RunConfig, threads: int, steps: int) -> dict[str, float]:
    """One point, once."""
    worker = Worker("point", arms.ours, threads, watched=True, config=config)
    worker.turn(1)
    times = [worker.turn(1) for _ in range(steps)]
    memory = worker.finish()
    return {"step_seconds": median(times), "above_bytes": memory["peak_bytes"] - memory["idle_bytes"]}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Two rows of plots: speed and memory against each swept size."""
    sweeps = list(dict.fromkeys(row["sweep"] for row in rows))
    with drawing(RC):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.4 * len(sweeps), 5.2), layout="constrained")
        figure.supxlabel(READING, x=0.01, ha="left", fontsize=8, color=PAPER.muted)
        axes = figure.subplots(2, len(sweeps), squeeze=False)
        for column, sweep in enumerate(sweeps):
            points = [row for row in rows if row["sweep"] == sweep]
            draw_speed(axes[0][column], points)
            draw_memory(axes[1][column], points)
        write_atomic(path, smaller(png_of(figure, dpi=100)))


def draw_speed(axes: Axes, points: list[dict[str, Any]]) -> None:
    """Tokens per second with their spread over the rounds, and what FLOPs alone would allow."""
    sizes = [row["value"] for row in points]
    rate = max(row["tokens_per_second"] * row["train_flops_per_token"] for row in points)
    dress(axes, PAPER, LABELS[points[0]["sweep"]], "Tokens per second")
    by_flops = [rate / row["train_flops_per_token"] for row in points]
    axes.plot(sizes, by_flops, color=PAPER.muted, linestyle=LINES[1], linewidth=1.1)
    speeds = [row["tokens_per_second"] for row in points]
    away = [
        [abs(row["speeds"][end] - speed) for row, speed in zip(points, speeds, strict=True)]
        for end in ("min", "max")
    ]
    axes.errorbar(sizes, speeds, away, color=PAPER.arms[0], marker="o", markersize=4.5, capsize=3)
    scale(axes, sizes)


def draw_memory(axes: Axes, points: list[dict[str, Any]]) -> None:
    """The peak of memory above that of the idle process."""
    sizes = [row["value"] for row in points]
    dress(axes, PAPER, LABELS[points[0]["sweep"]], "Peak memory above idle (MB)")
    axes.plot(sizes, [row["above_mb"] for row in points], color=PAPER.arms[0], marker="o", markersize=4.5)
    scale(axes, sizes)


def scale(axes: Axes, sizes: list[int]) -> None:
    """Sizes on a logarithmic axis, and what was measured from zero, unless it spans a factor of ten."""
    from matplotlib.ticker import FuncFormatter

    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=7.4)
    axes.minorticks_off()
    low, high = axes.dataLim.intervaly
    axes.set(**({"yscale": "log"} if high > 10 * low else {"ylim": (0, 1.05 * high)}))
    axes.yaxis.set_major_formatter(FuncFormatter(units.tick))
    axes.yaxis.set_minor_formatter(FuncFormatter(units.minor_tick))


def last_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of each sweep as the last run in a file of JSON lines found them."""
    sweeps: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["benchmark"] == "scaling":
            names = list(dict.fromkeys(row["sweep"] for row in record["rows"]))
            sweeps |= {name: [row for row in record["rows"] if row["sweep"] == name] for name in names}
    return [row for name in SWEEPS for row in sweeps.get(name, [])]


def point_row(sweep: str, value: int, config: RunConfig, each: list[dict[str, float]]) -> dict[str, Any]:
    """What was measured at one point, and what its model costs."""
    tokens = config.train.batch_size * config.train.context_length
    cost = model_cost(config.nanokimi.model, config.train.context_length)
    speeds = spread([tokens / one["step_seconds"] for one in each])
    return {
        "sweep": sweep,
        "value": value,
        "tokens_per_second": speeds["median"],
        "speeds": speeds,
        "above_mb": median(one["above_bytes"] for one in each) / 1e6,
        "params_total": cost.params_total,
        "params_active": cost.params_active,
        "train_flops_per_token": cost.train_flops_per_token,
    }


def rows_table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    header = ["sweep", "size", "tokens/s", "MB above idle", "parameters", "active", "MFLOP per token"]
    numbers = ("value", "tokens_per_second", "above_mb", "params_total", "params_active")
    return table(
        header,
        [
            [row["sweep"], *(f"{row[key]:,.0f}" for key in numbers)]
            + [f"{row['train_flops_per_token'] / 1e6:.1f}"]
            for row in rows
        ],
    )


def main() -> None:
    """Visit every point, print the table, draw the curves."""
    parser = options_parser(__doc__, rounds=2, steps=4)
    parser.add_argument("--config", default="shakespeare-char")
    parser.add_argument("--tokens", type=int, default=4096, help="in a step")
    parser.add_argument("--sweeps", nargs="+", default=list(SWEEPS), choices=list(SWEEPS))
    parser.add_argument("--plot", type=Path, default=None, help="a PNG to write")
    parser.add_argument("--draw", type=Path, default=None, help="plot the rows of this file, measure nothing")
    options, overrides = parser.parse_known_args()
    if options.draw is not None:
        return draw(last_rows(options.draw), options.plot)
    sweeps = SWEEPS
    if options.smoke:
        options.rounds, options.steps, options.tokens = 1, 1, 64
        sweeps = {name: sizes[:1] for name, sizes in SWEEPS.items()}
    config = arms.bench_config(options.config, overrides, options.threads)
    points = [(sweep, value) for sweep in options.sweeps for value in sweeps[sweep]]
    found: dict[tuple[str, int], list[dict[str, float]]] = {point: [] for point in points}
    with OtherLoad() as load:
        for number in range(options.rounds):
            for sweep, value in points if number % 2 == 0 else reversed(points):
                one = measure(resized(config, sweep, value, options.tokens), options.threads, options.steps)
                found[sweep, value].append(one)
    rows = [
        point_row(sweep, value, resized(config, sweep, value, options.tokens), each)
        for (sweep, value), each in found.items()
    ]
    print(rows_table(rows))
    speeds_by_experts = [row["tokens_per_second"] for row in rows if row["sweep"] == "experts"]
    flat = min(speeds_by_experts) / max(speeds_by_experts) if speeds_by_experts else None
    if flat is not None:
        print(f"experts: the slowest has {flat:.2f} of the fastest's tokens per second")
    if options.plot is not None:
        draw(rows, options.plot)
    finish(options, {"benchmark": "scaling", "experts_flat": flat, "rows": rows, "other_cores": load.cores})


if __name__ == "__main__":
    main()
