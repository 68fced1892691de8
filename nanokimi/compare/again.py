"""The report of a run or of a comparison that has ended, from the records in its folder.

`nanokimi train` ends with the report of its run, and `nanokimi report` makes any report again.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from nanokimi.compare.match import matched_arms
from nanokimi.compare.report import build_report, score_baselines
from nanokimi.compare.run import changed_runs, run_folder, seeds_of
from nanokimi.config import RunConfig
from nanokimi.config.files import load_config
from nanokimi.data.store import open_prepared
from nanokimi.errors import UserError
from nanokimi.report.page import write_report
from nanokimi.report.search_page import SEARCH_FILE, SEARCH_PAGE, write_search_page
from nanokimi.report.study_page import write_study_page
from nanokimi.runtime.files import read_json, write_json
from nanokimi.runtime.interrupts import Interrupted
from nanokimi.runtime.text import one_line
from nanokimi.train.result import RESULT_FILE
from nanokimi.train.run_folder import CONFIG_FILE, find_data, how_to_continue

REPORT_FILE, STUDY_FILE = "report.json", "study.json"
WITHOUT_PAGE = {"sweep.json": "a sweep", "results.jsonl": "an unfinished study"}


def report_again(folder: Path) -> Path:
    """Make the page and pictures of a run, a comparison or a study again; returns the page.

    Raises:
        UserError: the folder holds no finished run, comparison or study, or its records are damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name that of a run, a comparison or a study")
    try:
        return _write_page(folder)
    except (UserError, OSError, Interrupted):
        raise
    except Exception as error:  # a record without a number, or with a word in its place
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(
            f"{folder} holds records that cannot be shown ({reason}): were they changed?"
        ) from None


def _write_page(folder: Path) -> Path:
    if (folder / STUDY_FILE).is_file():
        write_study_page(folder)
        return folder / "study.html"
    if (folder / SEARCH_FILE).is_file():
        write_search_page(folder)
        return folder / SEARCH_PAGE
    if (folder / RESULT_FILE).is_file() or not (folder / REPORT_FILE).is_file():
        write_json(folder / REPORT_FILE, collect(folder))
    write_report(folder)
    return folder / "report.html"


def collect(folder: Path) -> dict[str, Any]:
    """The content of report.json, from the results of a run or of every run of a comparison."""
    for name, what in WITHOUT_PAGE.items():
        if (folder / name).is_file():
            raise UserError(f"{folder} holds {what}, which has no page: its numbers are in {name}")
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} holds no run, comparison or study: name the folder that one wrote")
    config = load_config(str(folder / CONFIG_FILE))
    if (folder / RESULT_FILE).is_file():
        return report_of_run(config, folder)
    data = open_prepared(find_data(folder))
    arms = matched_arms(config, data, folder)
    runs = {name: [run_folder(folder, name, seed) for seed in seeds_of(config)] for name in arms}
    if not any(one.is_dir() for folders in runs.values() for one in folders):
        raise UserError(f"the run in {folder} has not finished: {how_to_continue('train', folder)}")
    if not all((one / RESULT_FILE).is_file() for folders in runs.values() for one in folders):
        raise UserError(f"the comparison in {folder} has not finished: {how_to_continue('compare', folder)}")
    if any(folder.glob("report-before-*.json")) and changed_runs(arms, seeds_of(config), data, folder):
        raise UserError(
            f"the change of the comparison in {folder} has not finished: {how_to_continue('compare', folder, True)}"
        )
    by_seed = zip(*runs.values(), strict=True)
    results = [read_json(one / RESULT_FILE) for folders in by_seed for one in folders]
    return build_report(config, arms, data, score_baselines(data), results, folder)


def report_of_run(config: RunConfig, folder: Path) -> dict[str, Any]:
    """The content of the report.json of one run: a comparison of one arm with one seed."""
    alone = replace(config, compare=replace(config.compare, seeds=1, match="none", search=None))
    data, result = open_prepared(find_data(folder)), read_json(folder / RESULT_FILE)
    arms, baselines = {result["name"]: alone}, score_baselines(data)
    return build_report(alone, arms, data, baselines, [result], folder, verb="train")
