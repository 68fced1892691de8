"""Shared by the benchmarks: options, ratios by round, the check for other load, the machine's rates, table and JSON.

A ratio is formed within a round, in which the arms take turns (see `turns`); what is shown is the median over the
rounds, with the smallest and the largest. Beside each time stands its roofline: what the machine's own rates, measured
in the same run, allow at best (`nanokimi.profiling.bench.step_roofline`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from gpu.digits import rounded
from turns import Worker

from nanokimi.profiling.roofline import MachineRates, measure_machine
from nanokimi.runtime.device import choose_threads
from nanokimi.runtime.files import describe_environment

CPU = torch.device("cpu")
BUSY_CORES = 0.1  # of other processes; above this the numbers are doubtful


def options_parser(doc: str | None, rounds: int = 7, steps: int = 20) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--steps", type=int, default=steps, help="steps in one turn")
    parser.add_argument("--threads", type=int, default=choose_threads(None))
    parser.add_argument("--out", type=Path, default=None, help="append the JSON line to this file, too")
    parser.add_argument(
        "--smoke", action="store_true", help="as little as possible: only to see that it runs"
    )
    return parser


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def fastest(seconds: dict[str, list[float]], prefix: str) -> str:
    """The arm with the smallest median among those whose names begin with `prefix`."""
    return min((name for name in seconds if name.startswith(prefix)), key=lambda name: median(seconds[name]))


def ratio(seconds: dict[str, list[float]], peer: str, ours: str) -> dict[str, float]:
    """The peer's time over ours, by round: above 1, ours is the faster."""
    return spread([theirs / own for theirs, own in zip(seconds[peer], seconds[ours], strict=True)])


class OtherLoad:
    """Counts the cores that other processes use while the block runs, and warns if they are many."""

    def __enter__(self) -> OtherLoad:
        psutil.cpu_percent()
        time.sleep(0.5)
        before = psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)
        if before > BUSY_CORES:
            warn(f"{before:.1f} cores are busy before the benchmark starts: its numbers mean nothing")
        self.begin, self.busy, self.own = time.perf_counter(), self._busy(), self._own()
        self.cores = 0.0
        return self

    def __exit__(self, *ignored: object) -> None:
        seconds = time.perf_counter() - self.begin
        self.cores = max((self._busy() - self.busy - self._own() + self.own) / seconds, 0.0)
        if self.cores > BUSY_CORES:
            warn(f"other processes used {self.cores:.2f} cores meanwhile: the numbers mean nothing")

    def _busy(self) -> float:
        times = psutil.cpu_times()
        return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)

    def _own(self) -> float:
        # Of each, what its ended children took, too: processes of a group are children of a fork server.
        me = psutil.Process()
        alive = [p.cpu_times() for p in [me, *me.children(recursive=True)]]
        return float(sum(t.user + t.system + t.children_user + t.children_system for t in alive))


def warn(line: str) -> None:
    """A conspicuous line on standard error."""
    print(f"WARNING: {line}", file=sys.stderr, flush=True)


def rates(threads: int, smoke: bool = False) -> MachineRates:
    """The machine's rates with this number of threads."""
    torch.set_num_threads(threads)
    return measure_machine(CPU, 0.02 if smoke else 0.5)


def rates_record(found: MachineRates) -> dict[str, float]:
    """The rates as they are printed: GFLOP/s by dtype and GB/s."""
    products = {f"{name}_gflops": rate / 1e9 for name, rate in found.flops_per_second.items()}
    return {**products, "read_gb_per_s": found.read_bytes_per_second / 1e9}


def training_report(
    workers: list[Worker],
    seconds: dict[str, list[float]],
    tokens: int,
    rooflines: dict[str, float],
    peer: str,
) -> tuple[str, dict[str, Any]]:
    """The table of a training benchmark, and the same as a record; `rooflines` in ms, `peer` names the ratios' arm."""
    rows, record = [], {}
    for worker in workers:
        times, name = seconds[worker.name], worker.name
        found: dict[str, Any] = {
            "tokens_per_second": spread([tokens / s for s in times]),
            "step_ms": spread([s * 1e3 for s in times]),
            "roofline_ms": rooflines[name],
            "ratio": ratio(seconds, peer, name),
            "setup_seconds": worker.setup_seconds,
            "first_step_seconds": worker.first_step_seconds,
        }
        speed, over = shown(found["tokens_per_second"], ",.0f"), shown(found["ratio"])
        before = f"{worker.setup_seconds:.1f} + {worker.first_step_seconds:.1f}"
        rows.append([name, speed, shown(found["step_ms"], ".1f"), f"{rooflines[name]:.1f}", over, before])
        record[name] = found
    header = ["arm", "tokens/s", "ms per step", "roofline ms", f"times {peer}", "set-up + first step (s)"]
    return table(header, rows), record


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def shown(values: dict[str, float], form: str = ".2f") -> str:
    """A median with its range."""
    return f"{values['median']:{form}} ({values['min']:{form}} .. {values['max']:{form}})"


def commit_of(checkout: str) -> str | None:
    """Which commit of a peer ran; None if the folder is no checkout."""
    command = ["git", "-C", checkout, "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def finish(options: argparse.Namespace, record: dict[str, Any]) -> None:
    """Print the record as one JSON line, with machine and versions, and append it to --out."""
    environment = describe_environment()
    kept = ("time", "processor", "cores", "commit", "diff_sha256")
    facts = {name: environment[name] for name in kept} | {"torch": torch.__version__, "command": sys.argv}
    settings = {name: str(value) for name, value in vars(options).items() if name != "out"}
    line = json.dumps(rounded({**record, "options": settings, **facts}))
    print(line)
    if options.out is not None:
        with open(options.out, "a", encoding="utf-8") as file:
            file.write(line + "\n")
