"""A comparison folder with made-up numbers of a realistic shape, for the tests of the report and for looking at it.

`python tests/report_fixture.py FOLDER [STEPS] [ARMS] [SEEDS] [incidents]` writes one and its report.
"""

from __future__ import annotations

import json
import math
import random
import re
import sys
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from nanokimi.measure.spikes import spike_entries

LAYERS, HEADS, EXPERTS, CONTEXT, BATCH = (1, 2, 3), 4, 8, 64, 12
PROMPT = "Once, there was a small boy named Charlie. Charlie loved stories more than anything else."
STORY = (
    " One day, he went to the park with his mom and saw a big, red kite.\n\n"
    '"Mom, can I fly it?" he asked. His mom smiled and said, "Yes, but hold the string." The kite went up and up '
    "until it was a little dot in the sky. Charlie laughed, and the wind laughed with him."
)
NAMES = ("NanoKimi", "NanoGPT with Muon", "NanoGPT")
SEEDS = (1337, 1338)
SPEED = {"NanoKimi": 41.3, "NanoGPT with Muon": 27.9, "NanoGPT": 24.6}
LOWEST = {"NanoKimi": 1.31, "NanoGPT with Muon": 1.33, "NanoGPT": 1.42}
FLOOR, BYTES_PER_TOKEN = 1.05, 481_233 / 480_900
SPIKES = {"NanoKimi": {0.55: 0.7, 0.7: 2.4, 0.8: 1.1, 0.95: 0.9}, "NanoGPT": {0.6: 1.3}}
"""Heights in nats of the spikes, by share of the run."""
EVENTS = (
    (0.05, "out_of_memory", "12 windows at once did not fit; going on with 6"),
    (0.3, "nonfinite_skipped", "the gradient was not finite"),
    (0.31, "nonfinite_skipped", "the gradient was not finite"),
    (0.32, "nonfinite_rolled_back", "weights and optimizer as after step 30"),
    (0.5, "resumed", "from the checkpoint of step 60"),
)
Record = dict[str, Any]


def loss_at(name: str, step: int) -> float:
    """A curve from the logarithm of 65 characters down to the arm's lowest loss."""
    return LOWEST.get(name, 1.45) + 2.85 * math.exp(-step / 40) + 0.9 / (1 + step / 120)


def make_records(name: str, seed: int, steps: int, eval_every: int, prompt: str, story: str) -> list[Record]:
    """metrics.jsonl of one run."""
    rng, kimi, records = random.Random(f"{name} {seed}"), name.startswith("NanoKimi"), []
    luck = rng.gauss(0, 0.012)
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
                    "loss": loss_at(name, step) + luck + rng.gauss(0, 0.06),
                    **aux,
                    "lr": 1e-3,
                }
                | {"grad_norm": 0.4, "step_ms": SPEED.get(name, 30.0), "memory_bytes": memory}
            )
        if step % eval_every == 0 or step == steps:
            loss = loss_at(name, step) + luck + 0.04
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


def router_record(rng: random.Random, step: int) -> Record:
    """Expert shares that start uneven and settle."""
    uneven = 0.9 * math.exp(-step / 150) + 0.08
    weights = [
        [max(0.02, 1 + uneven * math.sin(2.1 * e + i) + rng.gauss(0, 0.05)) for e in range(EXPERTS)]
        for i in LAYERS
    ]
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


def attention_record(rng: random.Random, step: int) -> Record:
    """Logits that grow until QK-Clip catches some."""
    logits = [
        [4 + 110 * (1 - math.exp(-step / (150 + 90 * i))) * (0.6 + 0.3 * rng.random()) for _ in range(HEADS)]
        for i in range(4)
    ]
    clips = sum(value > 100 for row in logits for value in row)
    return {"kind": "attention", "step": step, "max_logits": logits, "clips": clips, "tau": 100.0}


def make_run(name: str, seed: int, records: list[Record], outcome: str) -> Record:
    """An entry of report.json's runs; `outcome` is its audit's."""
    kimi, last = name.startswith("NanoKimi"), [r for r in records if r["kind"] == "eval"][-1]
    step_ms, causal = SPEED.get(name, 30.0), outcome == "causal"
    test = last["val_loss"] + 0.021
    scores = {"val_loss", "val_perplexity", "val_bits_per_byte", "val_bits_per_char"}
    return {
        "name": name,
        "arm": name,
        "seed": seed,
        "folder": f"{slug(name)}/seed-{seed}",
        "params_total": 1_234_567 if kimi else 809_856,
        "params_active": 812_345 if kimi else 809_856,
        "flops_per_token": 4.9e6 if kimi else 5.1e6,
        "forward_flops_per_token": 1.63e6 if kimi else 1.7e6,
        "optimizer_flops_per_step": 2.4e8 if kimi else 9.7e6,
        "flops": last["flops"],
        "steps": last["step"],
        "tokens": last["tokens"],
        "train_seconds": last["train_seconds"],
        "tokens_per_second": BATCH * CONTEXT / step_ms * 1000,
        "ms_per_step": step_ms,
        "best_val_loss": last["val_loss"] - 0.0012,
        **{key: last[key] for key in sorted(scores)},
        "test_loss": test,
        "test_perplexity": math.exp(test),
        "test_bits_per_byte": test / math.log(2) / BYTES_PER_TOKEN,
        "test_bits_per_char": test / math.log(2),
        "floor": FLOOR,
        "attainable_floor": FLOOR,
        "floor_gap": test - FLOOR,
        "peak_memory_bytes": 512_300_000 if kimi else 431_700_000,
        "idle_memory_bytes": 301_000_000,
        "optimizer_state_bytes": 5_900_000 if kimi else 6_478_848,
        "cache_bytes_per_token": 1_280 if kimi else 4_096,
        "prefill_ms": 6.31 if kimi else 3.84,
        "decode_ms_per_token": 3.42 if kimi else 1.57,
        "loss_by_position": last["loss_by_position"],
        "audit": {
            "causal": causal,
            "verdict": outcome,
            "max_leak": 0.0 if causal else 0.731,
            "where": None if causal else "position 3 sees token 9",
            "cuts": 6,
            "not_excluded": ["a leak that needs more than 128 rows"] if causal else [],
        },
        "optimizer": {"NanoKimi": "muonclip", "NanoGPT with Muon": "muon"}.get(name, "adamw"),
        "lr": 0.005 if kimi else 0.001,
        "schedule": "10 steps of warm-up, cosine",
        "weight_decay": 0.1,
        "device": "cpu",
        "dtype": "fp32",
        "threads": 2,
    }


def slug(name: str) -> str:
    """The arm's folder."""
    return "-".join(re.findall(r"[a-z0-9]+", name.lower()))


def make_arm(name: str, runs: list[Record], search: Record | None) -> Record:
    """An entry of report.json's arms: means over its seeds."""
    own = [run for run in runs if run["arm"] == name]
    audit = own[0]["audit"]
    averaged = (
        "test_loss",
        "test_bits_per_byte",
        "val_loss",
        "floor_gap",
        "train_seconds",
        "ms_per_step",
    ) + (
        "tokens_per_second",
        "peak_memory_bytes",
        "decode_ms_per_token",
        "prefill_ms",
    )
    alike = ("params_active", "params_total", "flops", "tokens", "steps", "optimizer", "lr", "schedule")
    losses = [run["test_loss"] for run in own]
    return {
        "name": name,
        "slug": slug(name),
        "seeds": [run["seed"] for run in own],
        "leaking": None if audit["causal"] else f"{audit['verdict']}: {audit['where']}",
        "deviation": stdev(losses) if len(losses) > 1 else None,
        **{key: fmean(run[key] for run in own) for key in averaged},
        **{key: own[0][key] for key in alike},
        "search": search,
    }


def make_search(name: str) -> Record:
    """A tuning record: two hyperparameters that are numbers, and one whose last value is a word."""
    muon = name != "NanoGPT"
    best = {"lr": 0.016 if muon else 0.004, "init_scale": 0.8, "decay": "cosine"}
    curves: dict[str, list[list[Any]]] = {
        "lr": [[best["lr"] * 2.0**i, 1.5 + 0.03 * i * i] for i in range(-2, 3)],
        "init_scale": [[0.2, 1.61], [0.4, 1.53], [0.8, 1.5], [1.6, None]],
        "decay": [[0.3, 1.56], [0.6, 1.52], [1.0, 1.51], ["cosine", 1.5]],
    }
    table = [
        {
            "values": {**best, hyperparameter: value},
            "losses": [None if loss is None else loss - 0.004, loss and loss + 0.004],
        }
        for hyperparameter, curve in curves.items()
        for value, loss in curve
    ]
    return {
        "kind": "search",
        "space": {
            "lr": {"low": 0.0005, "high": 0.064, "scale": "log", "setting": "optim.lr"},
            "init_scale": {"low": 0.15, "high": 2.0, "scale": "log", "setting": "model.initializer_range"},
            "decay": {"low": 0.1, "high": 1.0, "scale": "linear, then cosine", "setting": "optim.schedule"},
        },
        "left_out": {} if muon else {"adamw_ratio": "adamw has a single rate"},
        "design": "64 points of a Sobol sequence, the same for every arm, then a pattern around the best",
        "seeds": [2337, 2338],
        "best": {"optim.lr": best["lr"], "model.initializer_range": 0.05, "optim.schedule": "cosine"},
        "best_values": best,
        "loss": 1.5,
        "trials": len(table),
        "runs": 2 * len(table),
        "cpu_seconds": 5_400.0,
        "interior": {"lr": True, "init_scale": muon, "decay": True},
        "table": table,
        "sensitivity": curves,
        "file": "tales.json",
        "changed": [],
    }


def make_comparisons(arms: list[Record], runs: list[Record]) -> list[Record]:
    """Every pair of arms that passed the audit; the interval over the text is narrower than that over seeds."""
    pairs = list(combinations([arm for arm in arms if arm["leaking"] is None], 2))
    made = []
    for first, second in pairs:
        losses = [[r["test_loss"] for r in runs if r["arm"] == arm["name"]] for arm in (first, second)]
        per_seed = [one - other for one, other in zip(*losses, strict=True)]
        mean, several = fmean(per_seed), len(per_seed) > 1
        low, high = mean - 0.06, mean + 0.06
        side = "lower" if high < 0 else "higher"
        words = "not distinguishable" if low <= 0 <= high else f"{side} by {abs(mean):.4f}"
        made.append(
            {"first": first["name"], "second": second["name"], "mean": mean, "tests": len(pairs)}
            | {"ci95": [low, high] if several else None, "seeds": len(per_seed), "per_seed": per_seed}
            | {"p": 0.02 if several else None, "holm_p": (0.04 if words != "not distinguishable" else 0.3)}
            | {
                "words": words if several else "not distinguishable (one seed)",
                "text95": [mean - 0.011, mean + 0.011],
            }
        )
        made[-1]["holm_p"] = made[-1]["holm_p"] if several else None
    return made


def make_verdict(arms: list[Record], seeds: tuple[int, ...]) -> Record:
    """The sentence and the winner: the first arm of several, where the seeds allow one."""
    void = [f"{arm['name']} is {arm['leaking']}" for arm in arms if arm["leaking"]]
    losses = ", ".join(f"{arm['name']} {arm['test_loss']:.4f}" for arm in arms if not arm["leaking"])
    if void:
        sentence = f"{'; '.join(void)}. Not ranked: the loss is void."
    elif len(seeds) < 2:
        sentence = f"{losses} nats per token of the test text (one seed). No winner: one seed cannot tell."
    else:
        sentence = f"{losses} nats per token of the test text (means of {len(seeds)} seeds)."
    named = len(seeds) > 1 and len(arms) > 1 and not void
    return {"sentence": sentence, "winner": arms[0]["name"] if named else None, "ranked": not void}


def add_incidents(name: str, records: list[Record], run: Record, steps: int) -> None:
    """Let a run spike; the first arm's first seed also skips batches, runs out of memory and is resumed."""
    heights = {round(share * steps): height for share, height in SPIKES.get(name, {}).items()}
    for record in records:
        if record["kind"] == "train":
            record["loss"] += heights.get(record["step"], 0.0)
    run["spikes"] = spike_entries(records)
    if name == "NanoKimi" and run["seed"] == SEEDS[0]:
        run |= {"batches_skipped": 2, "micro_batch_size": 6}
        for share, event, detail in EVENTS:
            step = round(share * steps)
            records.append({"kind": "event", "step": step, "event": event, "detail": detail})


def make_segments(records: dict[str, list[Record]], steps: int, length: int) -> list[Record]:
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


def make_context(steps: int) -> Record:
    """What the arms share: data, machine, settings."""
    return {
        "data": {
            "path": "data/stories.txt",
            "file_bytes": 4_812_345,
            "chars": 4_809_001,
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "tokenizer": "char",
            "vocab_size": 65,
            "split": "three",
            "train_tokens": 3_847_201,
            "val_tokens": 480_900,
            "test_tokens": 480_900,
            "test_text_bytes": 481_233,
            "test_text_chars": 480_900,
            "baselines": {
                "unigram": {"test_loss": 2.8874, "bits_per_byte": 4.1656},
                "5-gram": {"test_loss": 1.6021, "bits_per_byte": 2.3113},
                "floor": {"test_loss": FLOOR, "bits_per_byte": FLOOR / math.log(2) / BYTES_PER_TOKEN},
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
        "settings": {
            "context_length": CONTEXT,
            "batch_size": BATCH,
            "dtype": "fp32",
            "threads": 2,
            "steps": steps,
        }
        | {"turn_steps": 10},
        "spread": {"seed": 0.0123, "rounding": 0.0045, "runs": 24, "file": "benchmarks/results/spread.jsonl"},
        "match": {"asked": None, "ratios": {}, "sentence": "Matched in tokens; unmatched in training time."},
    }


def write_comparison(
    folder: Path,
    *,
    names: tuple[str, ...] = NAMES,
    seeds: tuple[int, ...] = SEEDS,
    steps: int = 120,
    eval_every: int = 40,
    outcomes: dict[str, str] | None = None,
    searched: bool = True,
    prompt: str = PROMPT,
    story: str = STORY,
    kinds: tuple[str, ...] = ("train", "eval", "router", "attention", "sample", "event"),
    incidents: bool = False,
) -> Record:
    """Write report.json and each run's metrics.jsonl, with only these kinds of record; return the report.

    `outcomes` says what the audit found of an arm; what is not named is causal.
    """
    made, runs = {}, []
    for seed in seeds:
        for name in names:
            made[name, seed] = make_records(name, seed, steps, eval_every, prompt, story)
            run = make_run(name, seed, made[name, seed], (outcomes or {}).get(name, "causal"))
            if incidents:
                add_incidents(name, made[name, seed], run, steps)
            runs.append(run)
    arms = [make_arm(name, runs, make_search(name) if searched else None) for name in names]
    report = {
        "schema_version": 2,
        "verdict": make_verdict(arms, seeds),
        "arms": arms,
        "runs": runs,
        "comparisons": make_comparisons(arms, runs),
        "seeds": list(seeds),
        **make_context(steps),
    }
    firsts = {name: made[name, seeds[0]] for name in names}
    report["segments"] = make_segments(firsts, steps, eval_every)
    for run in runs:
        own = folder / run["folder"]
        own.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(record) for record in made[run["arm"], run["seed"]] if record["kind"] in kinds]
        (own / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    write_report_json(folder, report)
    return report


def write_report_json(folder: Path, report: Record) -> None:
    """Replace report.json."""
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    from nanokimi.report import write_report

    numbers = [int(word) for word in sys.argv[2:] if word.isdigit()]
    target, (length, arm_count, seed_count) = Path(sys.argv[1]), [*numbers, *(2000, 3, 2)[len(numbers) :]]
    shown = (*NAMES, *(f"Another arm, number {i}" for i in range(4, 9)))[:arm_count]
    write_comparison(
        target,
        names=shown,
        seeds=tuple(range(1337, 1337 + seed_count)),
        steps=length,
        eval_every=max(1, length // 8),
        incidents="incidents" in sys.argv,
    )
    write_report(target)
