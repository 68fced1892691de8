"""Fuzz the readers of untrusted files: `python tests/fuzz.py LOADER [--minutes 10]`; LOADER: see `fuzz_loaders`.

Cases run in a child process, so that a crash, a hang or a huge allocation of a C++ library is a finding like any other.
A finding is an exception other than UserError, or an error that is not one line; each is named once, by its type and
place, and its smallest example is kept in a folder. The exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from fuzz_loaders import LOADERS, Case  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis.database import DirectoryBasedExampleDatabase  # noqa: E402
from hypothesis.errors import Flaky, FlakyFailure  # noqa: E402

import nanokimi  # noqa: E402
from nanokimi.errors import UserError  # noqa: E402

SLOW_SECONDS, HANG_SECONDS = 10.0, 40
CASE_MEGABYTES, ADDRESS_GIGABYTES = 600, 8
SHRINK_SECONDS = 20.0
MAX_MESSAGE = 2000
PACKAGE = f"{Path(nanokimi.__file__).parent}{os.sep}"
SECRET = b"untouched\n"
COUNTS = struct.Struct("<qqd")


class OutOfTime(BaseException):
    """Ends a round: hypothesis hands anything that is no Exception on."""


class Finding(Exception):
    """A case that went wrong in a way not seen before."""


@dataclass
class Report:
    """What one run found."""

    loader: str
    cases: int
    accepted: int
    seconds: float
    slowest: float
    findings: dict[str, Path] = field(default_factory=dict)
    """A name for each distinct failure, and the folder of its example."""


def prepare_root(root: Path) -> None:
    """The folder that cases run in, and beside it what they must not touch."""
    shutil.rmtree(root, ignore_errors=True)
    (root / "canary").mkdir(parents=True)
    (root / "canary" / "file").write_bytes(SECRET)
    (root / "home").mkdir()


def run_case(name: str, case: Case, root: Path) -> bool:
    """Load one case; True if it was accepted. Raises whatever is neither success nor a proper UserError."""
    case.write(root / "case")
    shutil.rmtree(root / "out", ignore_errors=True)
    try:
        LOADERS[name].load(root, case)
        accepted = True
    except UserError as error:
        accepted = False
        message = str(error)
        if not (message.isprintable() and 10 <= len(message) <= MAX_MESSAGE):
            raise AssertionError(f"the message is not one short line: {message[:300]!r}") from error
    canary = root / "canary"
    assert os.listdir(canary) == ["file"] and (canary / "file").read_bytes() == SECRET, (
        "written outside the folder"
    )
    assert not os.path.exists("PWNED"), "code was run"
    return accepted


def signature(error: BaseException) -> str:
    """The type of an error and the innermost place in the package (or in the fuzzer) that it came through."""
    innermost = error.__cause__ if isinstance(error.__cause__, UserError) else error
    frames = traceback.extract_tb(innermost.__traceback__)
    ours = [f for f in frames if f.filename.startswith(PACKAGE)]
    place = (ours or [f for f in frames if "fuzz" in f.filename] or frames)[-1]
    where = place.filename.removeprefix(PACKAGE) if ours else place.name
    words = f": {str(error)[:40]}" if isinstance(error, AssertionError) else ""
    return f"{type(error).__name__}{words} at {where}:{place.lineno}"


class Child:
    """The process that runs cases: counts them, and keeps the smallest example of each new failure."""

    def __init__(self, name: str, folder: Path, stop: float, limit: int, known: set[str]) -> None:
        self.name, self.folder, self.stop, self.limit, self.known = name, folder, stop, limit, known
        self.root = folder / "root"
        self.counts = os.open(folder / "counts", os.O_RDWR | os.O_CREAT)
        self.cases, self.accepted, self.slowest = COUNTS.unpack(
            os.pread(self.counts, COUNTS.size, 0) or bytes(COUNTS.size)
        )
        self.smallest: dict[str, int] = {}
        self.first_seen = 0.0
        self.peak = peak_megabytes()

    def try_case(self, case: Case) -> None:
        """Run a case under the watchdog; raise Finding for a failure that is to be shrunk."""
        if self.cases >= self.limit or time.monotonic() > self.stop:
            raise OutOfTime
        os.pwrite(self.counts, repr(case.options).encode("utf-8", "replace")[:8000].ljust(8000), COUNTS.size)
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=self.trace)
        start = time.monotonic()
        error: BaseException | None = None
        try:
            self.accepted += run_case(self.name, case, self.root)
        except Exception as caught:
            error = caught
        except BaseException as caught:  # a Rust panic
            if isinstance(caught, KeyboardInterrupt | SystemExit):
                raise
            error = caught
        faulthandler.cancel_dump_traceback_later()
        self.cases += 1
        seconds, grown = time.monotonic() - start, peak_megabytes() - self.peak
        self.peak += max(grown, 0)
        self.slowest = max(self.slowest, seconds)
        os.pwrite(self.counts, COUNTS.pack(self.cases, self.accepted, self.slowest), 0)
        if grown > CASE_MEGABYTES:
            self.keep(f"memory grew by more than {CASE_MEGABYTES} MB", case, error)
        if seconds > SLOW_SECONDS:
            self.keep(f"slower than {SLOW_SECONDS:g} s", case, error)
        if error is not None and (name := signature(error)) not in self.known:
            self.keep(name, case, error)
            self.first_seen = self.first_seen or time.monotonic()
            if time.monotonic() - self.first_seen < SHRINK_SECONDS:
                raise Finding(name)

    def keep(self, name: str, case: Case, error: BaseException | None) -> None:
        """Save a case if it is the smallest of its kind."""
        if case.size >= self.smallest.get(name, 1 << 62):
            return
        self.smallest[name] = case.size
        trace = "".join(traceback.format_exception(error)) if error else ""
        save_example(self.folder / "findings", name, case, trace)

    def run(self, derandomize: bool) -> None:
        """Rounds of hypothesis until the time is over; each ends at the first failure that is new."""
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_GIGABYTES << 30,) * 2)
        self.trace = open(self.folder / "trace", "w")  # noqa: SIM115
        faulthandler.enable(self.trace)
        prepare_root(self.root)
        os.chdir(self.root / "home")
        os.environ.update(
            HOME=str(self.root / "home"), NANOKIMI_CACHE=str(self.root / "cache"), HF_HUB_OFFLINE="1"
        )
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        database = DirectoryBasedExampleDatabase(str(self.folder / "database"))
        kind: dict[str, Any] = (
            dict(database=None, derandomize=True) if derandomize else dict(database=database)
        )
        settled = settings(
            max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
            phases=[Phase.generate, Phase.shrink], **kind
        )  # fmt: skip
        with contextlib.suppress(OutOfTime):
            while True:
                one_round = given(LOADERS[self.name].cases())(lambda case: self.try_case(case))
                one_round = settled(one_round if derandomize else seed(random.getrandbits(64))(one_round))
                self.first_seen, before = 0.0, self.cases
                try:
                    one_round()
                except (Finding, Flaky, FlakyFailure):  # flaky: shrinking took too long and was given up
                    pass
                except Exception as error:
                    self.keep(f"the fuzzer itself: {type(error).__name__}", Case({}), error)
                self.known |= set(self.smallest)
                (self.folder / "known.json").write_text(json.dumps(sorted(self.known)))
                if self.cases == before:
                    raise RuntimeError("hypothesis ran no case")


def peak_megabytes() -> float:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def save_example(folder: Path, name: str, case: Case, trace: str) -> None:
    """Write a case and what became of it."""
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)[:120]
    case.write(folder / safe / "case")
    (folder / safe / "what.txt").write_text(
        f"{name}\n\noptions: {case.options!r}\n\n{trace}", errors="replace"
    )


def fuzz(name: str, seconds: float, out: Path, limit: int = 1 << 60, derandomize: bool = False) -> Report:
    """Run children, a new one after each that dies, until the time or the number of cases is reached."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "findings").mkdir(parents=True)
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix=f"nanokimi-fuzz-{name}-", dir=memory if memory.is_dir() else None))
    LOADERS[name].cases().validate()
    warm_up(name)
    start = time.monotonic()
    deaths: dict[str, str] = {}
    known: set[str] = set()
    try:
        while time.monotonic() < start + seconds:
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    Child(name, folder, start + seconds, limit, known).run(derandomize)
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(status)
            status = wait(pid, start + seconds + HANG_SECONDS + 20)
            if (folder / "known.json").exists():
                known = set(json.loads((folder / "known.json").read_text()))
            if status == 0:
                break
            note_death(folder, status, deaths)
            if derandomize:
                break
        cases, accepted, slowest = COUNTS.unpack((folder / "counts").read_bytes()[: COUNTS.size])
        if (folder / "findings").exists():
            shutil.copytree(folder / "findings", out / "findings", symlinks=True, dirs_exist_ok=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = {(p / "what.txt").read_text().split("\n")[0]: p for p in sorted((out / "findings").iterdir())}
    return Report(name, cases, accepted, time.monotonic() - start, slowest, found)


def warm_up(name: str) -> None:
    """Make the valid files once, before children are forked."""
    for make in LOADERS[name].bases:
        make()


def wait(pid: int, until: float) -> int:
    """The exit status of a child; one that hangs so hard that its own watchdog is silent is killed."""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def note_death(folder: Path, status: int, deaths: dict[str, str]) -> None:
    """Keep the case during which a child died; one for each place."""
    trace = (folder / "trace").read_text() if (folder / "trace").exists() else ""
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    how = "hang" if "Timeout" in trace else how
    lines = [line.strip() for line in trace.splitlines() if PACKAGE in line or "fuzz_loaders" in line]
    name = f"{how} at {lines[0].replace(PACKAGE, '') if lines else 'an unknown place'}"
    if name in deaths:
        return
    deaths[name] = trace
    options = (folder / "counts").read_bytes()[COUNTS.size :].decode("utf-8", "replace").strip()
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)[:120]
    target = folder / "findings" / safe
    target.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder / "root" / "case", target / "case", symlinks=True, dirs_exist_ok=True)
    (target / "what.txt").write_text(f"{name}\n\noptions: {options}\n\n{trace}", errors="replace")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("loader", choices=[*LOADERS, "all"])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--cases", type=int, default=1 << 60)
    parser.add_argument("--derandomize", action="store_true", help="the same cases every time")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/fuzz"), help="folder for the examples of findings"
    )
    given_options = parser.parse_args()
    failed = False
    for name in LOADERS if given_options.loader == "all" else [given_options.loader]:
        out = given_options.out.resolve() / name
        report = fuzz(name, given_options.minutes * 60, out, given_options.cases, given_options.derandomize)
        print(
            f"{name}: {report.cases} cases ({report.accepted} accepted) in {report.seconds:.0f} s, "
            f"the slowest in {report.slowest:.1f} s; {len(report.findings)} findings"
        )
        for finding, folder in report.findings.items():
            print(f"  {finding}\n    {folder}")
        sys.stdout.flush()
        failed = failed or bool(report.findings)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
