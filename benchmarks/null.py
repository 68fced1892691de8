"""Null experiments: compare a model with itself many times and count the winners. The correct answer is none.

    python benchmarks/null.py --config tales --data tales-short --out runs/null --record docs/results/null.jsonl

Each try is an ordinary `nanokimi compare` of NanoGPT with its copy, with its own seeds. The copy is the variant that
has the same weights, batches and settings under other names (the same functions in another order, so only rounding
differs). On some processors the two agree to the bit, which would make the test too easy, so the same runs are judged
a second time with each try's copy taken from the next try: the same model, but other weights and batches.

A finished try is not run again and an interrupted one is resumed, so the command can be repeated until it is done.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from nanokimi.compare.verdict import verdict
from nanokimi.config.arms import arm_configs, with_arm
from nanokimi.config.files import load_config
from nanokimi.config.parsing import settings
from nanokimi.measure.stats import compare_pairs
from nanokimi.runtime.files import describe_environment, read_json, write_atomic

ARM, COPY = "NanoGPT", "Copy of NanoGPT"
OF_THE_MODEL = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "bias",
    "dropout",
    "initializer_range",
)
OF_THE_OPTIMIZER = (
    *("name", "lr", "adamw_lr", "betas", "weight_decay", "eps", "grad_clip"),
    *("schedule", "warmup_steps", "decay_fraction", "min_lr_ratio"),
)


def copy_words(config: str, options: list[str]) -> str:
    """NanoGPT's copy as `--arm` takes it: a variant with the arm's own settings, checked to have all of them."""
    base = load_config(config, options)
    own = settings(arm_configs(base)[ARM])
    names = [f"model.{name}" for name in OF_THE_MODEL] + [f"optim.{name}" for name in OF_THE_OPTIMIZER]
    words = [f"{name}={json.dumps(own[f'nanogpt.{name}'], separators=(',', ':'))}" for name in names]
    line = f"{COPY}: from=variant {' '.join(words)}"
    copied = settings(arm_configs(with_arm(base, line))[COPY])
    for key in own:
        if key.startswith("nanogpt.optim.") and own[key] != copied[key.replace("nanogpt.", "variant.", 1)]:
            raise SystemExit(
                f"{config}: the copy does not have NanoGPT's {key}; add it to benchmarks/null.py"
            )
    return line


def run_try(
    folder: Path, seed: int, config: str, data: str, seeds: int, options: list[str]
) -> dict[str, Any]:
    """The report of one try, run or resumed if need be."""
    if not (folder / "report.json").exists():
        if (folder / "config.yaml").exists():
            arguments = ["--resume", "--out", str(folder)]
        else:
            arguments = ["--config", config, "--data", data, "--seed", str(seed), "--seeds", str(seeds)]
            # a search's noise in the interval would make winners rarer than they are
            arguments += ["--compare.search", "null"]
            arguments += ["--arm", copy_words(config, ["--data", data, *options]), "--arms", f"{ARM},{COPY}"]
            arguments += ["--out", str(folder), *options]
        done = subprocess.run(
            [sys.executable, "-m", "nanokimi", "compare", *arguments], stdout=subprocess.DEVNULL
        )
        if done.returncode:
            raise SystemExit(f"{folder}: nanokimi compare ended with status {done.returncode}")
    report: dict[str, Any] = read_json(folder / "report.json")
    return report


def summary(what: str, tries: list[dict[str, Any]]) -> dict[str, Any]:
    """How many of the tries name a winner, and how far apart the arms were."""
    distances = [abs(sum(one["losses"][ARM]) - sum(one["losses"][COPY])) / one["seeds"] for one in tries]
    return {
        "kind": "summary",
        "what": what,
        "tries": len(tries),
        "seeds": tries[0]["seeds"],
        "winners": sum(one["winner"] is not None for one in tries),
        "smallest": min(distances),
        "largest": max(distances),
    }


def exchanged(tries: list[dict[str, Any]], rounding: float | None) -> list[dict[str, Any]]:
    """Each try with the next one's copy: weights and batches differ, but neither arm has an advantage."""
    found = []
    for one, other in zip(tries, tries[1:] + tries[:1], strict=True):
        losses = {ARM: one["losses"][ARM], COPY: other["losses"][COPY]}
        arms = [
            {"name": name, "leaking": None, "test_loss": sum(own) / len(own), "seeds": list(own)}
            for name, own in losses.items()
        ]
        judged = verdict(
            arms, compare_pairs(losses, rounding=rounding), {"5-gram": {"test_loss": None}}, None
        )
        found.append({**one, "kind": "exchanged", "losses": losses, "winner": judged["winner"]})
    return found


def null_rows(
    out: Path, tries: int, config: str, data: str, seeds: int, options: list[str]
) -> list[dict[str, Any]]:
    """All tries, run one after another, their summaries and how they were made."""
    done = []
    for number in range(tries):
        seed = 5001 + number * seeds
        report = run_try(out / f"try-{number:02d}", seed, config, data, seeds, options)
        losses = {
            arm["name"]: [run["test_loss"] for run in report["runs"] if run["arm"] == arm["name"]]
            for arm in report["arms"]
        }
        winner = report["verdict"]["winner"]
        done.append({"kind": "try", "seed": seed, "seeds": seeds, "losses": losses, "winner": winner})
        print(f"try {number + 1} of {tries}: {winner or 'no winner'}", file=sys.stderr)
    spread = load_config(config, options).compare.spread
    environment = describe_environment()
    head = {"kind": "null", **{key: environment[key] for key in ("time", "processor", "cores", "commit")}}
    head["command"] = " ".join(["python", "benchmarks/null.py", *sys.argv[1:]])
    summaries = [
        summary(f"NanoGPT and its copy, same weights and batches ({config})", done),
        summary(
            f"NanoGPT and itself with other weights and batches ({config})",
            exchanged(done, spread.rounding if spread else None),
        ),
    ]
    return [head, *summaries, *done]


def main() -> None:
    """Run the tries; print the summaries, and record all lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default="tales")
    parser.add_argument("--data", default="tales-short")
    parser.add_argument("--tries", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--record", type=Path, default=None, help="write the lines to this file, too")
    chosen, options = parser.parse_known_args()
    rows = null_rows(chosen.out, chosen.tries, chosen.config, chosen.data, chosen.seeds, options)
    content = "".join(json.dumps(row) + "\n" for row in rows)
    (chosen.out / "null.jsonl").write_text(content, encoding="utf-8")
    if chosen.record is not None:
        write_atomic(chosen.record, content)
    for row in rows:
        if row["kind"] == "summary":
            print(
                f"{row['what']}: a winner in {row['winners']} of {row['tries']} tries of {row['seeds']} seeds"
            )


if __name__ == "__main__":
    main()
