"""A comparison folder with made-up numbers of a realistic shape, for the tests of the report and for looking at it.

`python tests/report_fixture.py FOLDER [STEPS] [incidents]` writes one and its report.
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

from nanokimi.measure.spikes import spike_entries

LAYERS, HEADS, EXPERTS, CONTEXT, BATCH = (1, 2, 3), 4, 8, 64, 12
PROMPT = "Once, there was a small boy named Charlie. Charlie loved stories more than anything else."
STORY = (
    " One day, he went to the park with his mom and saw a big, red kite.\n\n"
    '"Mom, can I fly it?" he asked. His mom smiled and said, "Yes, but hold the string." The kite went up and up '
    "until it was a little dot in the sky. Charlie laughed, and the wind laughed with him."
)
SPEED = {"NanoKimi": 41.3, "NanoGPT": 24.6}
FLOOR = {"NanoKimi": 1.31, "NanoGPT": 1.36}
SPIKES = {"NanoKimi": {0.55: 0.7, 0.7: 2.4, 0.8: 1.1, 0.95: 0.9}, "NanoGPT": {0.6: 1.3}}
"""Heights in nats of the spikes, by share of the run."""
EVENTS = (
    (0.05, "out_of_memory", "12 windows at once did not fit; going on with 6"),
    (0.3, "nonfinite_skipped", "the gradient was not finite"),
    (0.31, "nonfinite_skipped", "the gradient was not finite"),
    (0.32, "nonfinite_rolled_back", "weights and optimizer as after step 30"),
    (0.5, "resumed", "from the checkpoint of step 60"),
)


def loss_at(name: str, step: int) -> float:
    """A curve from the logarithm of 65 characters down to the arm's floor."""
    return FLOOR.get(name, 1.4) + 2.85 * math.exp(-step / 40) + 0.9 / (1 + step / 120)


def make_records(name: str, steps: int, eval_every: int, prompt: str, story: str) -> list[dict[str, Any]]:
    """metrics.jsonl of one arm."""
    rng, kimi, records = random.Random(name), name.startswith("NanoKimi"), []
    for step in range(steps + 1):
        place = {
            "step": step,
            "tokens": step * BATCH * CONTEXT,
            "flops": step * BATCH * CONTEXT * (4.9e6 if kimi else 5.1e6),
            "train_seconds": step * SPEED.get(name, 30.0) / 1000,
        }
        if step:
            aux = {"aux_loss": 1e-4 * (1 + math.exp(-step / 80))} if kimi else {}
            memory = int(
                4.1e8 + 6e7 * kimi + 3e6 * rng.random() + (4e7 if step % max(1, steps // 7) == 0 else 0)
            )
            records.append(
                {
                    "kind": "train",
                    **place,
                    "loss": loss_at(name, step) + rng.gauss(0, 0.06),
                    **aux,
                    "lr": 1e-3,
                }
                | {"grad_norm": 0.4, "step_ms": SPEED.get(name, 30.0), "memory_bytes": memory}
            )
        if step % eval_every == 0 or step == steps:
            loss = loss_at(name, step) + 0.04
            by_position = [loss + 1.1 / (t + 1) for t in range(CONTEXT)]
            scores = {
                "val_loss": loss,
                "val_perplexity": math.exp(loss),
                "val_bits_per_byte": loss / math.log(2),
            }
            scores["val_bits_per_char"] = loss / math.log(2)
            records.append({"kind": "eval", **place, **scores, "loss_by_position": by_position})
            quality = {"distinct_2": 0.83, "repetition": 0.07 * rng.random(), "copied": 0.12}
            records.append(
                {"kind": "sample", "step": step, "prompt": prompt, "text": story[: 60 + step], **quality}
            )
        if kimi and step and step % 10 == 0:
            records += [router_record(rng, step), attention_record(rng, step)]
    return records


def router_record(rng: random.Random, step: int) -> dict[str, Any]:
    """Expert shares that start uneven and settle."""
    uneven = 0.9 * math.exp(-step / 150) + 0.08
    weights = [[max(0.02, 1 + uneven * math.sin(2.1 * e + i) + rng.gauss(0, 0.05)) for e in range(EXPERTS)]
               for i in LAYERS]  # fmt: skip
    load = [[w / sum(row) for w in row] for row in weights]
    peak = [EXPERTS * max(row) - 1 for row in load]
    return {
        "kind": "router",
        "step": step,
        "layers": list(LAYERS),
        "load": load,
        "load_cv": [p * 0.6 for p in peak],
    } | {
        "max_violation": peak,
        "dead_experts": [1 if step == 10 and i == 3 else 0 for i in LAYERS],
        "router_entropy": [math.log(EXPERTS) - 0.3 * p for p in peak],
        "bias": [[0.01 * e for e in range(EXPERTS)] for _ in LAYERS],
    }


def attention_record(rng: random.Random, step: int) -> dict[str, Any]:
    """Logits that grow until QK-Clip catches some."""
    logits = [[4 + 110 * (1 - math.exp(-step / (150 + 90 * i))) * (0.6 + 0.3 * rng.random()) for _ in range(HEADS)]
              for i in range(4)]  # fmt: skip
    clips = sum(value > 100 for row in logits for value in row)
    return {"kind": "attention", "step": step, "max_logits": logits, "clips": clips, "tau": 100.0}


def make_run(name: str, records: list[dict[str, Any]], leaks: bool) -> dict[str, Any]:
    """An entry of report.json."""
    kimi, last = name.startswith("NanoKimi"), [r for r in records if r["kind"] == "eval"][-1]
    step_ms = SPEED.get(name, 30.0)
    return {
        "name": name,
        "folder": name.lower().replace(" ", "-"),
        "params_total": 1_234_567 if kimi else 809_856,
        "params_active": 812_345 if kimi else 809_856,
        "flops_per_token": 4.9e6 if kimi else 5.1e6,
        "forward_flops_per_token": 1.63e6 if kimi else 1.7e6,
        "optimizer_flops_per_step": 2.4e8 if kimi else 9.7e6,
        "steps": last["step"],
        "tokens": last["tokens"],
        "train_seconds": last["train_seconds"],
        "tokens_per_second": BATCH * CONTEXT / step_ms * 1000,
        "ms_per_step": step_ms,
        "best_val_loss": last["val_loss"] - 0.0012,
        "test_loss": last["val_loss"],
        **{
            key: last[key] for key in ("val_loss", "val_perplexity", "val_bits_per_byte", "val_bits_per_char")
        },
        "floor_gap": None,
        "peak_memory_bytes": 512_300_000 if kimi else 431_700_000,
        "idle_memory_bytes": 301_000_000,
        "optimizer_state_bytes": 5_900_000 if kimi else 6_478_848,
        "cache_bytes_per_token": 1_280 if kimi else 4_096,
        "prefill_ms": 6.31 if kimi else 3.84,
        "decode_ms_per_token": 3.42 if kimi else 1.57,
        "loss_by_position": last["loss_by_position"],
        "audit": {"causal": not leaks, "max_leak": 0.731 if leaks else 0.0, "cuts": 6}
        | {"where": "model.layers.1.mlp.gate" if leaks else None},
        "optimizer": "muonclip" if kimi else "adamw",
        "lr": 0.005 if kimi else 0.001,
        "device": "cpu",
        "dtype": "fp32",
        "threads": 2,
    }


def make_verdict(runs: list[dict[str, Any]], leaking: tuple[str, ...]) -> dict[str, Any]:
    """The sentence and its numbers."""
    if leaking:
        sentence = f"No verdict: {' and '.join(leaking)} sees the tokens it is asked to predict, so its loss is void."
        return {
            "sentence": sentence,
            "winner": None,
            "difference_nats": 0.0,
            "ci95_nats": [0.0, 0.0],
            "ranked": False,
        }
    first, other = runs[0], runs[-1]
    gap = first["val_loss"] - other["val_loss"]
    sentence = (
        f"NanoKimi predicts the validation text better: {first['val_bits_per_byte']:.3f} against "
        f"{other['val_bits_per_byte']:.3f} bits per byte, and took 1.68 times as long to train."
    )
    return {
        "sentence": sentence,
        "winner": first["name"],
        "difference_nats": gap,
        "ranked": len(runs) > 1,
    } | {"ci95_nats": [gap - 0.011, gap + 0.011]}


def add_incidents(name: str, records: list[dict[str, Any]], run: dict[str, Any], steps: int) -> None:
    """Let a run spike; the first arm also skips batches, runs out of memory and is resumed."""
    heights = {round(share * steps): height for share, height in SPIKES.get(name, {}).items()}
    for record in records:
        if record["kind"] == "train":
            record["loss"] += heights.get(record["step"], 0.0)
    run["spikes"] = spike_entries(records)
    if name == "NanoKimi":
        run |= {"batches_skipped": 2, "micro_batch_size": 6}
        for share, event, detail in EVENTS:
            step = round(share * steps)
            records.append({"kind": "event", "step": step, "event": event, "detail": detail})


def make_segments(records: dict[str, list[dict[str, Any]]], steps: int, length: int) -> list[dict[str, Any]]:
    """The table by segment of steps."""
    segments = []
    for start in range(1, steps + 1, length):
        end, arms = min(start + length - 1, steps), {}
        for name, lines in records.items():
            losses = [r["loss"] for r in lines if r["kind"] == "train" and start <= r["step"] <= end]
            validations = [r["val_loss"] for r in lines if r["kind"] == "eval" and r["step"] == end]
            speed = SPEED.get(name, 30.0)
            arms[name] = {"train_loss": sum(losses) / len(losses), "ms_per_step": speed}
            arms[name] |= {"tokens_per_second": BATCH * CONTEXT / speed * 1000}
            arms[name] |= {"val_loss": validations[0] if validations else None}
        segments.append({"from_step": start, "to_step": end, "arms": arms})
    return segments


def make_context(steps: int) -> dict[str, Any]:
    """What the arms share: data, machine, settings."""
    return {
        "data": {
            "path": "data/stories.txt",
            "file_bytes": 4_812_345,
            "chars": 4_809_001,
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "tokenizer": "char",
            "vocab_size": 65,
            "train_tokens": 4_328_101,
            "val_tokens": 480_900,
            "val_text_bytes": 481_233,
            "val_text_chars": 480_900,
            "baselines": {
                "unigram": {"test_loss": 2.8874, "bits_per_byte": 4.1656},
                "5-gram": {"test_loss": 1.6021, "bits_per_byte": 2.3113},
                "gzip": {"test_loss": None, "bits_per_byte": 2.8341},
            },
        },
        "machine": {
            "processor": "AMD EPYC 7763 64-Core Processor",
            "cores": 2,
            "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
            "python": "3.11.7",
            "packages": {"nanokimi": "0.1.0", "torch": "2.9.0", "numpy": "2.3.1", "sentencepiece": None},
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "diff_sha256": None,
            "time": "2026-05-09T10:11:12+00:00",
            "device": "cpu",
        },
        "command": "nanokimi compare --data data/stories.txt --preset nano",
        "repeat": "nanokimi compare --config runs/compare-nano-1/config.yaml",
        "seed": 1337,
        "settings": {
            "context_length": CONTEXT,
            "batch_size": BATCH,
            "dtype": "fp32",
            "threads": 2,
            "steps": steps,
        }
        | {"turn_steps": 10},
        "paired": {
            "windows": 7515,
            "note": "Both models score the same windows; the interval is over their differences.",
        },
    }


def write_comparison(
    folder: Path,
    *,
    names: tuple[str, ...] = ("NanoKimi", "NanoGPT"),
    steps: int = 120,
    eval_every: int = 40,
    leaking: tuple[str, ...] = (),
    prompt: str = PROMPT,
    story: str = STORY,
    kinds: tuple[str, ...] = ("train", "eval", "router", "attention", "sample", "event"),
    incidents: bool = False,
) -> dict[str, Any]:
    """Write report.json and each arm's metrics.jsonl, with only these kinds of record; return the report."""
    made = {name: make_records(name, steps, eval_every, prompt, story) for name in names}
    runs = [make_run(name, made[name], name in leaking) for name in names]
    for run in runs if incidents else []:
        add_incidents(run["name"], made[run["name"]], run, steps)
    report = {
        "schema_version": 1,
        "verdict": make_verdict(runs, leaking),
        "runs": runs,
        **make_context(steps),
    }
    report["segments"] = make_segments(made, steps, eval_every)
    for run in runs:
        arm = folder / run["folder"]
        arm.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(record) for record in made[run["name"]] if record["kind"] in kinds]
        (arm / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    write_report_json(folder, report)
    return report


def write_report_json(folder: Path, report: dict[str, Any]) -> None:
    """Replace report.json."""
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    from nanokimi.report import write_report

    target, length = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2000
    write_comparison(target, steps=length, eval_every=max(1, length // 8), incidents="incidents" in sys.argv)
    write_report(target)
