"""GPU day, part 1: does a GPU compute what it should? Runs tests/test_gpu.py and writes a line for each test.

    python benchmarks/gpu/correctness.py [--out FOLDER] [--minutes 8] [-k WORDS]

A line's value holds what the test measured (`record_property`), such as errors relative to float64.
"""

from __future__ import annotations

from typing import Any

import rows
from rows import ROOT, Rows, TimeUp, in_short, stopped_in_time


class Lines:
    """A pytest plugin: a line for each test as soon as it has ended; no test begins after the time limit."""

    def __init__(self, found: Rows) -> None:
        self.rows, self.told = found, set[str]()
        self.names: list[str] = []

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        self.names = [name_of(item.nodeid) for item in items]

    def pytest_runtest_logreport(self, report: Any) -> None:
        ends = report.when == "call" or report.outcome != "passed"
        name = name_of(report.nodeid)
        if not ends or name in self.told:
            return
        self.told.add(name)
        why = None
        if report.outcome == "skipped":
            why = str(report.longrepr[2]).removeprefix("Skipped: ")
        elif report.outcome == "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            why = in_short(crash.message if crash else report.longreprtext)
        value = dict(report.user_properties) or None
        self.rows.write(name, report.outcome, value, why, report.duration)


def name_of(nodeid: str) -> str:
    """A test's name without its file and the `test_` before it."""
    return nodeid.partition("::")[2].removeprefix("test_")


def main() -> int:
    """The exit status: 1 if a test failed."""
    parser = rows.options(__doc__)
    parser.add_argument("-k", default="", help="only tests of these names, as pytest's -k")
    chosen = parser.parse_args()
    import pytest

    found = Rows("correctness", chosen.out, chosen.minutes)
    lines = Lines(found)
    words = [str(ROOT / "tests/test_gpu.py"), "-q", "-m", "gpu", "-p", "no:cacheprovider", "-p", "no:xdist"]
    try:
        with stopped_in_time(found):
            status = pytest.main([*words, "-k", chosen.k, "--no-header", "--tb=short"], plugins=[lines])
        stopped = status == pytest.ExitCode.INTERRUPTED
        why = (
            ("the time limit" if found.seconds_left <= 0 else "a signal") if stopped else "pytest ended early"
        )
    except TimeUp as stop:  # between two tests
        why = str(stop)
    for name in lines.names:
        if name not in lines.told:
            found.write(name, "left out", why=why)
    return found.finish()


if __name__ == "__main__":
    raise SystemExit(main())
