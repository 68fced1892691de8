"""GPU day, part 2: how fast? Training, decoding and evaluation beside nanoGPT's own code and transformers' classes.

    python benchmarks/gpu/speed.py [--nanogpt CHECKOUT] [--out FOLDER] [--minutes 8] [--seconds 8]

All arms train with 12 x 1,024 random tokens a step in bf16, as nanoGPT's bench.py does: NanoGPT and its peers at the
size of GPT-2's 124M, NanoKimi with as many active parameters. Each arm is a process of its own, timed after a warm-up
for --seconds, without waiting for the device within a step, and ended after --limit, so that one that hangs does not
take the others' time; the speed that it had found by then counts. nanoGPT is a checkout of https://github.com/karpathy/nanoGPT
that is never committed (default: .nanogpt here, which `carry` can take along); its arms are skipped without it.

Utilisation: the FLOPs that a step needs (causal attention, the optimizer's not counted) per second over the
datasheet's rate of dense bf16 products, or, for a GPU that is not listed, over the measured rate of a large one.

The bars, judged with each model's faster form (plain or compiled): NanoGPT has at least 1.2 times the tokens per second
of nanoGPT; NanoKimi has at least 40% utilisation, and takes at most 1.5 times NanoGPT's time per token.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import rows
from rows import PRETEND, ROOT, Rows, TimeUp, in_short, stopped_in_time

ARMS = (
    ["nanogpt-plain", "nanogpt-compiled", "nanogpt-bench-compiled", "nanokimi-plain", "nanokimi-compiled"]
    + ["nanogpt-peer-plain", "transformers-gpt2-plain", "transformers-deepseek-plain"]
    + ["nanogpt-peer-compiled", "nanogpt-bench-plain"]
)
"""What matters for the bars comes first."""
BARS = {
    "nanogpt over nanoGPT": 1.2,
    "nanokimi utilisation": 0.4,
    "nanokimi over nanogpt, time per token": 1.5,
}
LEAST_SECONDS = 20.0  # an arm is not begun with less time than that


class TooSlow(Exception):
    """An arm has taken more than --limit."""


def why_not(arm: str, checkout: Path) -> str | None:
    """Why an arm cannot run here."""
    if arm.endswith("compiled") and PRETEND:
        return "torch.compile cannot trace the pretend device"
    if arm.startswith(("nanogpt-peer", "nanogpt-bench")) and not (checkout / "model.py").is_file():
        return f"no checkout of nanoGPT at {checkout.name}: give it with --nanogpt"
    if arm.startswith("nanogpt-bench") and PRETEND:
        return "its size is fixed at 124M parameters: minutes on a CPU"
    if arm.startswith("transformers") and find_spec("transformers") is None:
        return "transformers is not installed"
    if arm.startswith("transformers-deepseek") and PRETEND:
        return "the pretend device has no fused attention with values narrower than keys"
    return None


def run_arm(arm: str, chosen: Any, seconds_left: float, file: Path) -> None:
    """Let an arm's process write what it finds to a file.

    Raises RuntimeError with its last line if it fails, TooSlow if it takes more than its limit, and TimeUp if it takes
    more than the script has.
    """
    limit = seconds_left if chosen.limit is None else min(chosen.limit, seconds_left)
    try:
        if arm.startswith("nanogpt-bench"):
            file.write_text(json.dumps(nanogpt_bench(arm, chosen.nanogpt.resolve(), limit)))
            return
        words = [sys.executable, str(Path(__file__).with_name("arm.py")), arm, str(chosen.seconds)]
        words += [str(chosen.nanogpt.resolve()), "tiny" if chosen.tiny else "full", str(file)]
        run(words, None, limit)
    except TimeUp:
        if limit < seconds_left:
            raise TooSlow(f"ended after {limit:.0f} s, an arm's limit") from None
        raise


def nanogpt_bench(arm: str, checkout: Path, seconds_left: float) -> dict[str, Any]:
    """nanoGPT's own bench.py, unchanged, on its random tokens; its burn-in and its clock."""
    compiled = arm.endswith("compiled")
    words = [sys.executable, "bench.py", "--real_data=False", f"--compile={compiled}"]
    printed = run(words, checkout, seconds_left)
    found = re.search(r"time per iteration: ([\d.]+)ms", printed)
    if found is None:
        raise RuntimeError("bench.py printed no time per iteration")
    step_ms = float(found[1])
    return {"tokens_per_second": 12 * 1024 / step_ms * 1e3, "step_ms": step_ms}


def run(words: list[str], folder: Path | None, seconds_left: float) -> str:
    """What a process printed; it is ended with all that it started when its time is up."""
    process = subprocess.Popen(
        words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, errors = process.communicate(timeout=max(seconds_left, 1.0))
    except subprocess.TimeoutExpired:
        raise TimeUp("the time limit") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()
    if process.returncode:
        raise RuntimeError(in_short(errors))
    return out


def bars(found: dict[str, dict[str, Any]], write: Any) -> None:
    """A line for each bar: met, missed, or left out where an arm that it needs has no number.

    On the pretend device, whose speed means nothing, neither.
    """

    def best(name: str) -> dict[str, Any] | None:
        arms = [row for arm, row in found.items() if re.fullmatch(f"{name}-(plain|compiled)", arm)]
        return max(arms, key=lambda row: row["tokens_per_second"], default=None)

    gpt, kimi = best("nanogpt"), best("nanokimi")
    peer = best("nanogpt-bench") or best("nanogpt-peer")
    speeds = {
        name: arm and arm["tokens_per_second"] for name, arm in (("gpt", gpt), ("kimi", kimi), ("peer", peer))
    }
    values = [
        speeds["gpt"] / speeds["peer"] if gpt and peer else None,
        kimi["utilisation"] if kimi else None,
        speeds["gpt"] / speeds["kimi"] if gpt and kimi else None,
    ]
    for (name, bar), value in zip(BARS.items(), values, strict=True):
        if value is None:
            write(f"bar: {name}", "left out", why="an arm that it needs has no number")
            continue
        met = value <= bar if "time" in name else value >= bar
        status = "measured" if PRETEND else "met" if met else "missed"
        write(f"bar: {name}", status, {"value": value, "bar": bar})


def measure(arm: str, chosen: Any, out: Rows, file: Path, found: dict[str, dict[str, Any]]) -> str | None:
    """Run an arm and write its line, also where it has found only a part. Returns why the script stops, if it does."""
    before, status, why, stopped = out.seconds_left, "left out", None, None
    try:
        with stopped_in_time(out):
            run_arm(arm, chosen, out.seconds_left, file)
    except TimeUp as stop:
        why = stopped = str(stop)
    except TooSlow as slow:
        why = str(slow)
    except (RuntimeError, ValueError, IndexError) as error:
        status, why = "failed", in_short(error)
    value = None
    if file.is_file():
        status, value = "measured", json.loads(file.read_text())
        found[arm] = value
    out.write(arm, status, value, why, seconds=before - out.seconds_left)
    return stopped


def main() -> int:
    """The exit status: 1 if an arm failed. A bar that is missed is no failure."""
    parser = rows.options(__doc__)
    parser.add_argument("--nanogpt", type=Path, default=ROOT / ".nanogpt", help="a checkout of nanoGPT")
    parser.add_argument("--seconds", type=float, default=1.0 if PRETEND else 8.0, help="for each arm's steps")
    parser.add_argument(
        "--limit", type=float, default=None if PRETEND else 150.0, help="seconds of an arm, all in all"
    )
    parser.add_argument("--arms", nargs="*", default=ARMS, choices=ARMS)
    chosen = parser.parse_args()
    out = Rows("speed", chosen.out, chosen.minutes)
    found: dict[str, dict[str, Any]] = {}
    stopped: str | None = None
    with tempfile.TemporaryDirectory(prefix="gpu-day-") as folder:
        for arm in ["rates", *chosen.arms]:
            reason = why_not(arm, chosen.nanogpt)
            if reason is not None:
                out.write(arm, "skipped", why=reason)
            elif stopped or out.seconds_left < (0 if PRETEND else LEAST_SECONDS):
                out.write(arm, "left out", why=stopped or "the time limit")
            else:
                stopped = measure(arm, chosen, out, Path(folder) / f"{arm}.json", found)
    bars(found, out.write)
    return out.finish()


if __name__ == "__main__":
    raise SystemExit(main())
