"""What the scripts of a GPU day share: how they start on a bare machine, their time limit, and the lines they write.

Import this first: it lets nanokimi be imported from the checkout, without an installation, and finds the packages that
`make gpu-wheels` has put into `.gpu-wheels`. A line (JSON) has

    script, name     of what
    status           passed, failed, measured, met, missed, skipped or "left out" (by the time limit)
    value            what was found, or null
    why              of a failure, a skip or what is left out; else null
    seconds          that it took
    pretend          whether the device was the pretend one of tests/pretend_device: such numbers mean nothing
    time, machine, cores, gpu, torch, python, commit

and is on disk before the next one is begun, so a script that is stopped leaves whole lines.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from digits import rounded

ROOT = Path(__file__).resolve().parents[2]
WHEELS = ROOT / ".gpu-wheels"
PRETEND = bool(os.environ.get("PRETEND_DEVICE"))
MINUTES = 20.0 if PRETEND else 8.0  # of a script; a busy processor may take its time
UNPACKED = "NANOKIMI_GPU_WHEELS"


class TimeUp(KeyboardInterrupt):
    """The time limit, or a signal to end.

    No Exception, which a check may take for its own failure; and pytest ends at a KeyboardInterrupt, while it takes any
    other for the failure of a test.
    """


def find_packages() -> None:
    """Put the checkout, the tests and the unpacked wheels on the path of this process and of those it starts."""
    if WHEELS.is_dir() and UNPACKED not in os.environ:
        folder = tempfile.mkdtemp(prefix="gpu-wheels-")
        for wheel in sorted(WHEELS.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
        os.environ[UNPACKED] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    ours = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get(UNPACKED)])]
    sys.path[:0] = [path for path in ours if path not in sys.path]
    theirs = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*filter(None, theirs), *ours]))


find_packages()


def options(doc: str | None) -> argparse.ArgumentParser:
    """The options that every script has."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / ("runs/gpu-day" if PRETEND else "docs/results/gpu")
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after so many it stops")
    parser.add_argument("--tiny", action="store_true", default=PRETEND, help="sizes that a CPU can take, too")
    return parser


class Rows:
    """Writes the lines of one script, and knows how much of its time is left."""

    def __init__(self, script: str, out: Path, minutes: float) -> None:
        self.script, self.begin = script, time.monotonic()
        self.end = self.begin + 60 * minutes
        self.counts: dict[str, int] = {}
        self.facts = facts()
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / f"{script}.jsonl"

    @property
    def seconds_left(self) -> float:
        """Seconds before the time limit."""
        return self.end - time.monotonic()

    def write(
        self, name: str, status: str, value: Any = None, why: str | None = None, seconds: float = 0.0
    ) -> None:
        """Append a line and print it in short."""
        row = dict(script=self.script, name=name, status=status, value=value, why=why, seconds=seconds)
        line = json.dumps(rounded({**row, "pretend": PRETEND, "time": int(time.time()), **self.facts}))
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.counts[status] = self.counts.get(status, 0) + 1
        shown = "" if value is None else json.dumps(rounded(value))[:160]
        print(f"{status:9}{name}  {shown}{why or ''}", flush=True)

    def finish(self) -> int:
        """Print the counts. Returns the exit status: 1 if something failed."""
        told = ", ".join(f"{number} {status}" for status, number in self.counts.items())
        print(f"{self.script}: {told}, {time.monotonic() - self.begin:.0f} s, {self.path}", flush=True)
        return 1 if self.counts.get("failed") else 0


def facts() -> dict[str, Any]:
    """The machine, as every line names it."""
    import torch

    from nanokimi.runtime.files import describe_environment

    found = describe_environment("cuda:0" if torch.cuda.is_available() else "cpu")
    commit = found["commit"]
    if commit is None and (carried := WHEELS / "COMMIT").is_file():
        commit = carried.read_text().strip()
    return {
        "machine": found["processor"],
        "cores": found["cores"],
        "gpu": found["gpu"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit,
    }


@contextmanager
def stopped_in_time(rows: Rows) -> Iterator[None]:
    """Raise TimeUp in the block at the time limit, or when a signal asks to end."""

    def stop(number: int, _: object) -> None:
        raise TimeUp("the time limit" if number == signal.SIGALRM else "a signal")

    before = {
        number: signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT)
    }
    signal.setitimer(signal.ITIMER_REAL, max(rows.seconds_left, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def in_short(error: BaseException | str) -> str:
    """An error as one line of at most 300 characters: its last line, which names it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    named = "" if isinstance(error, str) else f"{type(error).__name__}: "
    return f"{named}{' '.join(lines[-1].split())}"[:300]
