"""GPU day, part 3: one comparison of three arms on the built-in stories at a GPU's scale (preset tales-gpu).

    python benchmarks/gpu/science.py [--seeds 3] [--out FOLDER] [--minutes 8]

It prepares the text, measures a step, a validation and the audit of each arm (as `train --dry-run` does), and chooses
the number of steps so that all seeds fit into the time that is left. The lines are the forecast of each arm, each run
as soon as it has finished, and at the end the verdict of `nanokimi compare`. Stopped at its time limit, it leaves the
lines of the runs that have finished and says which have not.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import rows
from rows import PRETEND, Rows, TimeUp, in_short, stopped_in_time

HERE = Path(__file__).resolve().parent
MOST_STEPS, FEWEST_STEPS = 2000, 20
USED = 0.8  # of the time left: what a dry run does not measure, such as stories, comes on top
START_SECONDS = 15.0  # of each seed's processes
RUN_FACTS = (
    "arm seed steps tokens val_loss test_loss floor_gap params_active params_total flops ms_per_step train_seconds "
    "tokens_per_second peak_memory_bytes optimizer lr schedule device dtype"
).split()


def settings(chosen: Any) -> list[str]:
    """The words that name the comparison's configuration."""
    files = [str(HERE / "less-text.yaml"), *([str(HERE / "tiny-arms.yaml")] if chosen.tiny else [])]
    return ["--config", ",".join(["tales-gpu", *files])]


def forecasts(chosen: Any, out: Rows, folder: Path) -> dict[str, Any]:
    """What each arm's steps, validations and audit take here: a line each."""
    from nanokimi.config.arms import arm_configs
    from nanokimi.config.files import load_config
    from nanokimi.profiling.forecast import forecast

    words = settings(chosen)
    config = load_config(words[1], ["--train.max_steps", "100", "--train.eval_every", "100"])
    found = {}
    for name, arm in arm_configs(config).items():
        begin = time.monotonic()
        found[name] = forecast(arm, folder / "forecast")
        value = {
            "step_ms": found[name].step_seconds * 1e3,
            "seconds": found[name].seconds,
            "peak_memory_bytes": found[name].peak_memory_bytes,
            "params_active": found[name].cost.params_active,
            "params_total": found[name].cost.params_total,
        }
        out.write(f"forecast: {name}", "measured", value, seconds=time.monotonic() - begin)
    return found


def steps_that_fit(found: dict[str, Any], seeds: int, seconds: float) -> int:
    """Steps of every arm and seed that fit into so many seconds, beside three validations, test part and audit."""
    fixed = START_SECONDS * seeds
    for each in found.values():
        one = each.seconds["validations"] / each.validations
        fixed += seeds * (3 * one + each.seconds["test"] + each.seconds["audit"])
    a_step = seeds * sum(each.step_seconds for each in found.values())
    return max(min(int((USED * seconds - fixed) / a_step), MOST_STEPS), FEWEST_STEPS)


def compare(words: list[str], runs: Path, out: Rows) -> str | None:
    """Run `nanokimi compare`, with a line for each run once it has finished. Returns why it did not end well."""
    log = runs.with_suffix(".log")
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "nanokimi", "compare", *words, "--out", str(runs)],
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    told: set[Path] = set()
    try:
        while process.poll() is None:
            time.sleep(0.5)
            tell_finished(runs, told, out)
    except TimeUp as stop:
        process.send_signal(signal.SIGINT)  # it saves its runs
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        return str(stop)
    finally:
        tell_finished(runs, told, out)
    if process.returncode not in (0, 1):
        return in_short(log.read_text(encoding="utf-8"))
    return None


def tell_finished(runs: Path, told: set[Path], out: Rows) -> None:
    """A line for each result.json that is new."""
    from nanokimi.runtime.files import read_json

    for path in sorted(set(runs.glob("*/seed-*/result.json")) - told):
        told.add(path)
        result = read_json(path)
        value = {key: result[key] for key in RUN_FACTS if key in result} | {"arm": result["name"]}
        value["audit"] = result["audit"]["verdict"]
        out.write(f"run: {result['name']}, seed {result['seed']}", "measured", value)


def main() -> int:
    """The exit status: 1 if the comparison failed."""
    from nanokimi.runtime.interrupts import Interrupted

    parser = rows.options(__doc__)
    parser.add_argument("--seeds", type=int, default=2 if PRETEND else 3)
    chosen = parser.parse_args()
    out = Rows("science", chosen.out, chosen.minutes)
    with tempfile.TemporaryDirectory(prefix="gpu-day-") as name:
        os.environ.setdefault("NANOKIMI_CACHE", str(Path(name) / "cache"))
        runs = Path(name) / "runs"
        why: str | None = None
        try:
            with stopped_in_time(out):
                found = forecasts(chosen, out, Path(name))
                left = out.seconds_left
                steps = FEWEST_STEPS if chosen.tiny else steps_that_fit(found, chosen.seeds, left)
                words = [*settings(chosen), "--seeds", str(chosen.seeds), "--train.max_steps", str(steps)]
                words += ["--train.eval_every", str(max(steps // 2, 1))]
                shown = shlex.join(word.replace(f"{HERE}/", "benchmarks/gpu/") for word in words)
                out.write("plan", "measured", {"steps": steps, "seconds_left": left, "compare": shown})
                why = compare(words, runs, out)
        except TimeUp as stop:
            why = str(stop)
        except Interrupted:  # a dry run takes signals itself
            why = "a signal"
        except Exception as error:
            out.write("comparison", "failed", why=in_short(error))
            return out.finish()
        finish(runs, why, chosen.seeds, out)
    return out.finish()


def finish(runs: Path, why: str | None, seeds: int, out: Rows) -> None:
    """The last line: the verdict, or what is missing and why."""
    from nanokimi.runtime.files import read_json

    report = runs / "report.json"
    if report.is_file():
        verdict = read_json(report)["verdict"]
        out.write("verdict", "measured", {"sentence": verdict["sentence"], "ranked": verdict["ranked"]})
        return
    ended = len(list(runs.glob("*/seed-*/result.json")))
    stopped = why in ("the time limit", "a signal")
    missing = f"{ended} of {3 * seeds} runs have finished: {why}"
    out.write("verdict", "left out" if stopped else "failed", why=missing)


if __name__ == "__main__":
    raise SystemExit(main())
