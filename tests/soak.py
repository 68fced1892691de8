"""Kill a real training process again and again, resume it each time, and compare its end with an uninterrupted run's.

    python tests/soak.py --kills 100 [--verb compare | --model nanogpt] [--seed 0] [--folder DIR]

SIGKILL comes at random moments of three sorts, in turn: from the start of the process on (imports, loading), while it
trains, and while a checkpoint is being written. Final weights, optimizer, and every record but its clocks must be
equal bit for bit; prints one JSON object and exits 1 if they are not. Of a comparison the parent is killed: its two
workers are orphans, that may still be writing while the next process starts.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

WORDS = "the small boy found a red ball and gave it to his friend who was very happy but then a dog ran off"
CLOCKS = ("step_ms", "memory_bytes", "train_seconds")
SEED = 7  # of the runs
SETTINGS = """\
seed: {seed}
model: {model}
dataset: {{path: {text}, cache: {cache}}}
train: {{context_length: 16, batch_size: 8, max_steps: {steps}, eval_every: 150, save_every: 10, micro_batch_size: 4,
  eval_batch_size: 8, device: cpu, threads: 1}}
sample: {{prompts: [the small boy], max_new_tokens: 20}}
nanokimi:
  model: {{hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, kv_lora_rank: 16, qk_nope_head_dim: 16,
    qk_rope_head_dim: 8, v_head_dim: 16, intermediate_size: 48, moe_intermediate_size: 16, n_routed_experts: 4}}
nanogpt:
  model: {{hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, dropout: 0.1}}
"""


def command(verb: str, folder: Path, out: Path) -> list[str]:
    """The same command starts and resumes the run, as a job scheduler would repeat it."""
    words = [verb, "--config", str(folder / "settings.yaml"), "--resume", "--out", str(out)]
    return [sys.executable, "-m", "nanokimi", *words]


def run_folders(verb: str, out: Path) -> list[Path]:
    """The run itself, or a comparison's arms."""
    return [out] if verb == "train" else [out / name / f"seed-{SEED}" for name in ("nanokimi", "nanogpt")]


def saving(runs: list[Path]) -> bool:
    """Whether a checkpoint is half written."""
    return any(path for run in runs for path in (run / "checkpoints").glob(".step-*.tmp"))


def written(runs: list[Path]) -> list[int]:
    """When records were last written."""
    return [path.stat().st_mtime_ns for run in runs if (path := run / "metrics.jsonl").exists()]


def wait_for(process: subprocess.Popen[Any], condition: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while process.poll() is None and not condition() and time.monotonic() < deadline:
        time.sleep(0.001)


def live_and_die(words: list[str], runs: list[Path], sort: str, chance: random.Random) -> str | None:
    """One life of the process: what it was killed in, or None if it came to its end first."""
    log = tempfile.TemporaryFile()  # an orphan would keep a pipe open
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=log)
    if sort == "starting":
        time.sleep(chance.uniform(0.0, 4.0))
    else:
        before = written(runs)
        wait_for(process, lambda: written(runs) != before)
        time.sleep(chance.uniform(0.0, 0.3))
        if sort == "saving":
            wait_for(process, lambda: saving(runs), 20.0)
            time.sleep(chance.uniform(0.0, 0.01))
    try:
        child = psutil.Process(process.pid)
        child.send_signal(signal.SIGSTOP)
        found = "saving" if saving(runs) else sort
        child.kill()
    except psutil.NoSuchProcess:
        found = "ended"
    process.wait()
    if process.returncode == 0:
        return None
    if process.returncode != -signal.SIGKILL:
        log.seek(0)
        raise SystemExit(f"the run ended with status {process.returncode}: {log.read().decode()}")
    return found


def records(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without clocks."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCKS} for line in lines]


def final_files(out: Path) -> dict[str, bytes]:
    """The weights, and the optimizer of the last checkpoint."""
    last = sorted((out / "checkpoints").glob("step-*"))[-1]
    return {
        path.name: path.read_bytes() for path in (out / "model.safetensors", last / "optimizer.safetensors")
    }


def soak(verb: str, model: str, folder: Path, kills: int, steps: int, seed: int) -> dict[str, Any]:
    """Run it all in `folder`; the result says how often it was killed in what, and whether the ends are equal."""
    text, chance = folder / "text.txt", random.Random(seed)
    words = WORDS.split()
    text.write_text("\n".join(" ".join(chance.choice(words) for _ in range(9)) + "." for _ in range(400)))
    settings = SETTINGS.format(seed=SEED, model=model, text=text, cache=folder / "cache", steps=steps)
    (folder / "settings.yaml").write_text(settings)
    whole, broken = folder / "whole", folder / "broken"
    runs = run_folders(verb, broken)
    pairs = list(zip(run_folders(verb, whole), runs, strict=True))
    started = time.monotonic()
    subprocess.run(command(verb, folder, whole), check=True, capture_output=True)
    counts = {"starting": 0, "training": 0, "saving": 0}
    while sum(counts.values()) < kills:
        sort = ("starting", "training", "saving")[sum(counts.values()) % 3]
        found = live_and_die(command(verb, folder, broken), runs, sort, chance)
        if found is None:
            break
        counts[found] += 1
        print(f"kill {sum(counts.values())}: {found}", file=sys.stderr, flush=True)
    subprocess.run(command(verb, folder, broken), check=True, capture_output=True)
    return {
        "verb": verb,
        "model": model if verb == "train" else "both",
        "kills": sum(counts.values()),
        "killed_while": counts,
        "steps": steps,
        "files_equal": all(final_files(one) == final_files(other) for one, other in pairs),
        "records_equal": all(records(one) == records(other) for one, other in pairs),
        "seconds": round(time.monotonic() - started),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--verb", choices=("train", "compare"), default="train")
    parser.add_argument("--model", choices=("nanokimi", "nanogpt"), default="nanokimi", help="of train")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=None, help="default: 60 for each kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, default=None, help="kept afterwards (default: a temporary one)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nanokimi-soak-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        steps = options.steps or 60 * options.kills
        result = soak(options.verb, options.model, folder, options.kills, steps, options.seed)
    print(json.dumps(result))
    return 0 if result["files_equal"] and result["records_equal"] and result["kills"] == options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
