"""The folders that Compare and Watch offer: those that the page was opened with, and the runs below one folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nanokimi.runtime.text import visible
from nanokimi.train.run_folder import CONFIG_FILE

METRICS_FILE, RESULT_FILE, REPORT_FILE = "metrics.jsonl", "result.json", "report.json"
MOST_OFFERED = 200


@dataclass(frozen=True)
class Places:
    """Where the page looks for runs. A visitor chooses among what is there, and names no path."""

    named: tuple[Path, ...]
    """Runs and comparisons that the page was opened with."""
    below: Path | None = None
    """A folder whose runs are offered, too."""

    def all(self) -> dict[str, Path]:
        """The folders of runs and comparisons by what they are called, the newest first after the named ones."""
        found = list(self.named)
        if self.below is not None:
            inside = [path for path in folders_in(self.below) if is_run(path) and not path.is_symlink()]
            found += sorted(inside, key=lambda path: -last_written([path]))
        labels: dict[str, Path] = {}
        for path in list(dict.fromkeys(map(Path.resolve, found)))[:MOST_OFFERED]:
            tails = ("/".join(path.parts[start:]) for start in reversed(range(len(path.parts))))
            label = next((tail for tail in map(visible, tails) if tail not in labels), None)
            if label is not None:
                labels[label] = path
        return labels

    def comparable(self) -> dict[str, Path]:
        """Those of them that have ended."""
        return {label: path for label, path in self.all().items() if has_ended(path)}

    def watchable(self) -> dict[str, Path]:
        """Those of them that have begun, the one that wrote last first."""
        found = {label: path for label, path in self.all().items() if metrics_of(path)}
        return dict(sorted(found.items(), key=lambda item: -last_written(metrics_of(item[1]))))


def offered(labels: Iterable[str], chosen: object) -> list[str]:
    """What a list on the page offers: the labels, and what a visitor has chosen there, though it be gone.

    Gradio refuses every call whose choice is not in the list, before the page can say that the run is gone.
    """
    found = list(labels)
    return found if chosen is None or chosen in found else [*found, str(chosen)]


def folders_in(folder: Path) -> list[Path]:
    """What is in a folder; nothing if it is gone, or closed to us."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def is_run(folder: Path) -> bool:
    """Whether it is the folder of a run or comparison, and not of a study; not if it is closed to us."""
    return os.path.isfile(folder / CONFIG_FILE) and not os.path.isfile(folder / "results.jsonl")


def has_ended(folder: Path) -> bool:
    """Whether a run or a comparison has results."""
    if (folder / REPORT_FILE).is_file() or (folder / RESULT_FILE).is_file():
        return True
    runs = metrics_of(folder)
    return bool(runs) and all((path.parent / RESULT_FILE).is_file() for path in runs)


def metrics_of(folder: Path) -> list[Path]:
    """The records of a run, or of each run of a comparison."""
    depths = (METRICS_FILE, f"*/{METRICS_FILE}", f"*/*/{METRICS_FILE}")
    try:
        return next((found for depth in depths if (found := sorted(folder.glob(depth)))), [])
    except OSError:  # deleted while it is searched
        return []


def last_written(paths: Iterable[Path]) -> float:
    """When the newest of these files was written to, as Unix time; 0 if there is none any more."""
    newest = 0.0
    for path in paths:
        try:
            newest = max(newest, os.stat(path).st_mtime)
        except OSError:  # a run may be deleted at any moment
            continue
    return newest
