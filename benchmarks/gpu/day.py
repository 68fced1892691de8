"""A GPU day: correctness.py, speed.py and science.py one after the other, each with its own time limit.

    python benchmarks/gpu/day.py [--out FOLDER] [--minutes 8] [--nanogpt CHECKOUT]

Each may also be started alone, such as in three calls of ten minutes each on a lent machine. Without a CUDA device it
says so and does nothing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import rows

HERE = Path(__file__).resolve().parent
GRACE_SECONDS = 60.0  # beyond its limit, in which a script writes what it left out


def main() -> int:
    """The exit status: 1 if something failed in one of the three, 2 without a device."""
    parser = rows.options(__doc__)
    parser.add_argument("--nanogpt", type=Path, default=None, help="a checkout of nanoGPT, for speed.py")
    chosen = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("this machine has no CUDA device: try `make gpu-day PRETEND=1`", file=sys.stderr)
        return 2
    shared = ["--out", str(chosen.out), "--minutes", str(chosen.minutes)]
    if chosen.tiny:
        shared.append("--tiny")
    failed = False
    for name in ("correctness", "speed", "science"):
        more = ["--nanogpt", str(chosen.nanogpt)] if name == "speed" and chosen.nanogpt else []
        words = [sys.executable, str(HERE / f"{name}.py"), *shared, *more]
        try:
            status = subprocess.run(words, timeout=60 * chosen.minutes + GRACE_SECONDS).returncode
        except subprocess.TimeoutExpired:
            print(f"{name}: ended, since it did not stop at its time limit", flush=True)
            status = 1
        failed = failed or status != 0
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
