"""What `nanokimi compare` shows on a terminal, as an SVG picture: a comparison's records through the real display.

    python benchmarks/terminal_picture.py RUNS/COMPARISON docs/images/terminal.svg

The panels are those after a share of the training of the first seed (`--at`); the text below them is the final one.
"""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

from rich.console import Console

from nanokimi.cli.verbs import filled
from nanokimi.compare.summary import summary_table
from nanokimi.runtime.display import Display
from nanokimi.runtime.files import read_json, read_json_lines, write_atomic

WIDTH = 118


def main() -> None:
    """Replay the records, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=WIDTH, help=f"columns (default: {WIDTH})")
    parser.add_argument("--at", type=float, default=0.6, help="share of the training (default: 0.6)")
    options = parser.parse_args()
    report = read_json(options.folder / "report.json")
    first = {run["arm"]: run for run in report["runs"] if run["seed"] == report["seeds"][0]}
    settings = report["settings"]
    tokens_per_step = settings["batch_size"] * settings["context_length"]
    console = Console(
        record=True, width=options.width, force_terminal=True, file=io.StringIO(), color_system="truecolor"
    )
    display = Display(list(first), tokens_per_step, console)
    for name, run in first.items():
        total = run["steps"]
        for record in read_json_lines(options.folder / run["folder"] / "metrics.jsonl"):
            if record["step"] <= options.at * total:
                display.show(name, record, total)
    seeds = f" --seeds {len(report['seeds'])}" if len(report["seeds"]) > 1 else ""
    console.print(f"$ nanokimi compare{seeds}", style="bold", highlight=False)
    console.print(display.panels())
    console.print(filled(report["verdict"]["sentence"], options.width), highlight=False)
    console.print(summary_table(report["arms"], options.width), highlight=False)
    out = f"runs/{options.folder.name}"
    console.print(
        filled(f"Open: {out}/report.html   Try: nanokimi sample {out}", options.width), highlight=False
    )
    picture = console.export_svg(title="nanokimi compare")
    # rich's fonts would be fetched from outside; the reader's own will do
    write_atomic(options.picture, re.sub(r"\s*@font-face \{.*?\}\n", "\n", picture, flags=re.DOTALL))


if __name__ == "__main__":
    main()
