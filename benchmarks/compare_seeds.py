"""One comparison for each seed, and a table of means and spreads over the seeds.

    python benchmarks/compare_seeds.py --data path/to/text.txt --out runs/shakespeare --seeds 1337 1338 1339

Each comparison is an ordinary `nanokimi compare` in `OUT/seed-N`. A finished one is not run again and an interrupted
one is resumed, so the command can be repeated until it is done. Options it does not know go to `nanokimi compare`.
The rows (one JSON object for each run) are written to `OUT/rows.jsonl`, the table to standard output.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from nanokimi.compare.proportions import over_seeds

COLUMNS = (
    ("val_loss", "validation loss (nats/token)", "{:.4f}", 1.0),
    ("floor_gap", "above the floor (nats/token)", "{:.4f}", 1.0),
    ("val_bits_per_byte", "bits per byte", "{:.4f}", 1.0),
    ("floor_gap_bits_per_byte", "above the floor (bits per byte)", "{:.4f}", 1.0),
    ("params_active", "active parameters", "{:,.0f}", 1.0),
    ("params_total", "total parameters", "{:,.0f}", 1.0),
    ("ms_per_step", "ms per step (median)", "{:.1f}", 1.0),
    ("train_seconds", "training seconds", "{:.0f}", 1.0),
    ("peak_memory_bytes", "peak memory (MB)", "{:.0f}", 1e-6),
    ("decode_ms_per_token", "decode ms per token", "{:.2f}", 1.0),
)
KEPT = [column[0] for column in COLUMNS if "floor" not in column[0]] + [
    "name",
    "steps",
    "tokens",
    "optimizer",
    "lr",
    "device",
    "dtype",
    "threads",
]


def run_comparison(seed: int, out: Path, data: str, options: list[str]) -> dict[str, Any]:
    """The report of one seed's comparison, run or resumed if need be."""
    folder = out / f"seed-{seed}"
    if not (folder / "report.json").exists():
        if (folder / "config.yaml").exists():
            arguments = ["--resume", "--out", str(folder)]
        else:
            arguments = ["--data", data, "--seed", str(seed), "--out", str(folder), *options]
        subprocess.run([sys.executable, "-m", "nanokimi", "compare", *arguments], check=True)
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a column for each model, mean and standard deviation over its seeds."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for key, title, form, unit in COLUMNS:
        if key not in rows[0]:
            continue  # the floor is known of tales only
        cells = []
        for name in names:
            values = [row[key] * unit for row in rows if row["name"] == name]
            spread = stdev(values) if len(values) > 1 else 0.0
            cells.append(form.format(mean(values)) + (" +- " + form.format(spread) if spread else ""))
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tales_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: what the story world's parser and its questions said, with intervals over questions and seeds."""
    names = list(dict.fromkeys(row["name"] for row in rows))

    def pooled(find: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
        cells = []
        for name in names:
            parts = [find(row["tales"]) for row in rows if row["name"] == name]
            if any("right" not in part for part in parts):
                raise SystemExit(
                    "these runs do not say which questions were answered (an earlier version): run them again"
                )
            p = over_seeds(np.array([part["right"] for part in parts]))
            asked = f"{parts[0]['total']} x {len(parts)} seeds"
            cells.append(f"{p.share:.0%} ({p.low:.0%} to {p.high:.0%}) of {asked}")
        return " | ".join(cells)

    lines = []
    for key in ("grammatical", "consistent", "complete", "perfect"):
        lines.append(f"| {key} | " + pooled(lambda tales, key=key: tales["judged"][key]) + " |")  # type: ignore[misc]
    for distance in rows[0]["tales"]["recall"]:
        lines.append(
            f"| recall after {distance} words | "
            + pooled(lambda tales, d=distance: tales["recall"][d])  # type: ignore[misc]
            + " |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the seeds and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1337, 1338, 1339])
    known, options = parser.parse_known_args()
    rows = []
    for seed in known.seeds:
        report = run_comparison(seed, known.out, known.data, options)
        for run in report["runs"]:
            if not run["audit"]["causal"]:
                raise SystemExit(f"{run['name']} with seed {seed} is LEAKING: no table")
            rows.append(
                {"seed": seed, "commit": report["machine"]["commit"], **{key: run[key] for key in KEPT}}
            )
            rows[-1] |= {key: run[key] for key in ("floor_gap", "floor_gap_bits_per_byte") if run.get(key)}
            rows[-1] |= {key: run[key] for key in ("tales",) if key in run}
    content = "".join(json.dumps(row) + "\n" for row in rows)
    (known.out / "rows.jsonl").write_text(content, encoding="utf-8")
    print(table(rows))
    if "tales" in rows[0]:
        print(tales_table(rows))


if __name__ == "__main__":
    main()
