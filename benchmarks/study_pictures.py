"""The pictures of ablation and scale studies in docs/, drawn again from what was recorded; nothing is measured.

    python benchmarks/study_pictures.py

They are those that `nanokimi ladder` and `nanokimi scale` write, of docs/results/*.jsonl. The rows of the withdrawn
ladders have no losses by stretch of text, from which their bootstrap intervals came, so those are read from the tables
of docs/earlier-results.md.
"""

from __future__ import annotations

import re
from typing import Any

from recorded import RESULTS, ROOT
from small_png import smaller
from study_tables import study_report

from nanokimi.report import study_plots
from nanokimi.report.study_page import EFFECT_WIDTH
from nanokimi.runtime.files import read_json_lines, write_atomic
from nanokimi.study.scale import curves_of
from nanokimi.study.study import arm_rows

DOCS = ROOT / "docs"
ROW = re.compile(
    r"^\| (without [^|]+) \| (\S+) \| (\S+) to (\S+) \| \S+ \| (\S+) to (\S+) \| ([^|]+) \|$", re.MULTILINE
)


def old_effects(picture: str) -> list[dict[str, Any]]:
    """The rows of the table that stands above a picture in docs/earlier-results.md."""
    above, _, _ = (DOCS / "earlier-results.md").read_text(encoding="utf-8").partition(f"({picture})")
    table = above[above.rindex("**Leave-one-out") :]
    return [
        {
            "name": name,
            "mean": float(mean),
            "ci95": [float(low), float(high)],
            "bootstrap95": [float(lowest), float(highest)],
            "words": words,
        }
        for name, mean, low, high, lowest, highest, words in ROW.findall(table)
    ]


def draw_effects(picture: str, text: str, effects: list[dict[str, Any]]) -> None:
    """NanoKimi without each component."""
    inches = (EFFECT_WIDTH, study_plots.effects_height(len(effects)) + 0.3)
    title = f"Leave-one-out, {text}"
    png = study_plots.png(inches, title, "effects", study_plots.draw_effects, effects)
    write_atomic(DOCS / picture, smaller(png))


def draw_old_scale(picture: str) -> None:
    """Loss against compute of the withdrawn study over sizes, which had no test part: its losses are of validation."""
    *lines, plan = read_json_lines(RESULTS / "old" / "scale-tales.jsonl")
    results = {line["key"]: {**line, "test_loss": line["val_loss"]} for line in lines}
    curves = curves_of({**plan, "arms": arm_rows(plan, results)})["curves"]
    arguments = (study_plots.draw_curves, curves, "flops", plan["data"]["floor"])
    write_atomic(DOCS / picture, smaller(study_plots.png((6.4, 4.4), plan["title"], "scaling", *arguments)))


def main() -> None:
    """Draw all of them."""
    for name in ("ladder-shakespeare", "ladder-tales"):
        report = study_report(RESULTS / f"{name}.jsonl")
        effects = [one for one in report["effects"] if one["family"] == "leave-one-out"]
        draw_effects(f"{name}-leave-one-out.png", report["data"]["path"], effects)
    for name, text in (("ladder-shakespeare", "tinyshakespeare.txt"), ("ladder-tales", "tales")):
        draw_effects(f"{name}-down.png", text, old_effects(f"{name}-down.png"))
    draw_old_scale("scale-tales-flops.png")


if __name__ == "__main__":
    main()
