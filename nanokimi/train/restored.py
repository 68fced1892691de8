"""What happens to the files of a run or a comparison that is resumed with changed settings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nanokimi.config import FREE_WHEN_RESUMED, RunConfig
from nanokimi.config.parsing import settings
from nanokimi.errors import UserError
from nanokimi.train.arm_order import CONFIG_FILE
from nanokimi.train.result import RESULT_FILE
from nanokimi.train.weights import DATA_FOLDER, WEIGHTS_FILE

OF_SETTINGS = ("report.json", "report.html", "comparison.png", RESULT_FILE)
"""What a run or a comparison found with its settings; a comparison's results are in its runs."""
RUNS = "*/seed-*"
SET_ASIDE = ("*-before-*", f"{RUNS}/*-before-*")
KEPT = (CONFIG_FILE, "match.json", *OF_SETTINGS, f"{RUNS}/{CONFIG_FILE}", f"{RUNS}/{RESULT_FILE}")
"""Small files that a change may replace or take away, in a run's folder or a comparison's."""


@contextmanager
def restored_if_refused(folder: Path, changing: bool) -> Iterator[None]:
    """Restore configurations, results, reports and data if the run or the comparison refuses the changed ones."""
    if not changing:
        yield
        return
    backup = folder / ".before"
    shutil.rmtree(backup, ignore_errors=True)
    backup.mkdir()
    names = [path.relative_to(folder) for pattern in KEPT for path in folder.glob(pattern)]
    for name in names:
        (backup / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / name, backup / name)
    if (folder / DATA_FOLDER).is_dir():
        shutil.copytree(folder / DATA_FOLDER, backup / DATA_FOLDER)
    present = {path for pattern in (RUNS, *SET_ASIDE) for path in folder.glob(pattern)}
    try:
        yield
    except UserError:
        shutil.rmtree(folder / DATA_FOLDER, ignore_errors=True)
        for name in (*names, Path(DATA_FOLDER)):
            if (backup / name).exists():
                os.replace(backup / name, folder / name)
        remove_new(folder, present, backup)
        raise
    finally:
        shutil.rmtree(backup, ignore_errors=True)


def remove_new(folder: Path, present: set[Path], backup: Path) -> None:
    """Remove what was set aside, and runs that were made and not begun, if they were not `present` before.

    Weights, of which there is no backup because they may be large, get their name back.
    """
    for path in {found for pattern in SET_ASIDE for found in folder.glob(pattern)} - present:
        if path.name.startswith(f"{Path(WEIGHTS_FILE).stem}-before-"):
            os.replace(path, path.with_name(WEIGHTS_FILE))
        else:
            path.unlink()
    for run in set(folder.glob(RUNS)) - present:
        if backup in run.parents or (run / "metrics.jsonl").exists():
            continue
        shutil.rmtree(run)
        if not any(run.parent.iterdir()):
            run.parent.rmdir()


def decides_results(saved: RunConfig, config: RunConfig) -> bool:
    """Whether two configurations differ in what decides the numbers of a run, whichever arm of a comparison it is.

    What the arms differ in is left out: which runs of a comparison that changes, their checkpoints say.
    """
    then, now = settings(saved), settings(config)
    changed = {key for key in {**then, **now} if then.get(key) != now.get(key)} - FREE_WHEN_RESUMED
    return any(key != "arms" and not key.startswith("compare.") for key in changed)


def require_checkpoints(folder: Path) -> None:
    """Raise UserError if a run of a comparison has a result and no checkpoint: on another text it cannot be continued.

    It would keep the result that it has, beside those of the new text.
    """
    for run in sorted(folder.glob(RUNS)):
        if (run / RESULT_FILE).is_file() and not any((run / "checkpoints").glob("step-*")):
            raise UserError(
                f"the run in {run} has finished, and its checkpoints are gone, so it cannot be continued with what the "
                "text is now: put one of them back, or start another comparison with --out"
            )


def set_results_aside(folder: Path) -> None:
    """Give result, report, page and final weights another name, because training goes on with other settings.

    They get the number of the configuration that they are of, as in config-before-1.yaml, or the next free one.
    """
    number = max(len(list(folder.glob("config-before-*.yaml"))), 1)
    while any(path.suffix != ".yaml" for path in folder.glob(f"*-before-{number}.*")):
        number += 1
    for name in map(Path, (*OF_SETTINGS, WEIGHTS_FILE)):
        if (folder / name).is_file():
            os.replace(folder / name, folder / f"{name.stem}-before-{number}{name.suffix}")
