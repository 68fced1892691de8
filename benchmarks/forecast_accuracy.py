"""How near `nanokimi train --dry-run` comes to what is then measured, on several configurations.

    python benchmarks/forecast_accuracy.py --data tinyshakespeare.txt --out runs/forecast [--only smoke,wide]

Each configuration is forecast and then trained, both in fresh processes, one after the other. The table shows the
forecast over the measurement: 1.00 is right, above it the forecast was too large. The machine should be idle.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from nanokimi.config.files import load_config
from nanokimi.profiling.forecast import forecast

WIDE = "--nanokimi.model.hidden_size 256 --nanokimi.model.num_hidden_layers 6 --nanokimi.model.intermediate_size 672"
WIDE += " --nanokimi.model.moe_intermediate_size 224 --nanokimi.model.num_attention_heads 8"
WIDE += " --train.batch_size 16 --train.context_length 256 --dataset.val_fraction 0.02"
CONFIGS = {
    "smoke": ("smoke, NanoKimi", "--config smoke"),
    "smoke-gpt": ("smoke, NanoGPT", "--config smoke --model nanogpt"),
    "char": ("shakespeare-char, 150 steps", "--config shakespeare-char --train.max_steps 150"),
    "wide": (
        "256 wide, 6 layers, batch 16 x 256, 20 steps",
        f"--config shakespeare-char {WIDE} --train.max_steps 20",
    ),
    "accumulate": (
        "the same in passes of 4 x 256, 10 steps",
        f"--config shakespeare-char {WIDE} --train.max_steps 10 --train.micro_batch_size 4",
    ),
    "recompute": (
        "the same with activation checkpointing, 10 steps",
        f"--config shakespeare-char {WIDE} --train.max_steps 10 --train.activation_checkpointing true",
    ),
    "seconds": ("shakespeare-char, 30 seconds", "--config shakespeare-char --train.max_steps null"),
    "tales": ("tales, 60 steps", "--config tales --dataset.characters 2000000 --train.max_steps 60"),
}


def compare(name: str, data: str, out: Path) -> dict[str, float]:
    """Forecast and train one configuration; returns pairs of forecast and measured numbers."""
    options = CONFIGS[name][1].split()
    options += ["--train.threads", "1", *(["--data", data] if name != "tales" else [])]
    if name == "seconds":
        options += ["--train.max_seconds", "30"]
    start = time.perf_counter()
    found = forecast(load_config(options[1], options[2:]), out / name)
    dry_seconds = time.perf_counter() - start
    start = time.perf_counter()
    command = [sys.executable, "-m", "nanokimi", "train", *options, "--out", str(out / name)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    result = json.loads((out / name / "result.json").read_text())
    disk = sum(path.stat().st_size for path in (out / name).rglob("*") if path.is_file())
    return {
        "steps": found.steps / result["steps"],
        "forecast_train_seconds": found.train_seconds,
        "train_seconds": result["train_seconds"],
        "forecast_wall_seconds": found.seconds,
        "wall_seconds": wall,
        "forecast_peak_bytes": found.peak_memory_bytes,
        "peak_bytes": result["peak_memory_bytes"],
        "disk": found.disk_bytes / disk,
        "dry_run_seconds": dry_seconds,
        "load": os.getloadavg()[0],
    }


def row(name: str, r: dict[str, float]) -> str:
    """One line of the table."""
    cells = [CONFIGS[name][0]]
    for key, unit, form in (
        ("train_seconds", 1, ".1f"),
        ("wall_seconds", 1, ".1f"),
        ("peak_bytes", 1e6, ".0f"),
    ):
        cells.append(f"{r[key] / unit:{form}}")
        cells.append(f"{r['forecast_' + key] / r[key]:.2f}")
    cells += [f"{r['steps']:.2f}", f"{r['disk']:.2f}", f"{r['dry_run_seconds']:.0f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Run the configurations and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--only", default=",".join(CONFIGS), help="names, separated by commas")
    known = parser.parse_args()
    print("| run | training s | ratio | whole s | ratio | peak MB | ratio | steps | disk | dry run s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    known.out.mkdir(parents=True, exist_ok=True)
    for name in known.only.split(","):
        result = compare(name, known.data, known.out)
        with open(known.out / "rows.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, **result}) + "\n")
        print(row(name, result), flush=True)


if __name__ == "__main__":
    main()
