"""The metrics that a run computes are those that reports and studies show."""

from __future__ import annotations

from nanokimi.measure import evaluate
from nanokimi.report.metrics import FIRST_COLUMNS, NOT_SHOWN, STUDY_PAGE, STUDY_TEXT, TABLE
from nanokimi.train.metrics import METRICS

SCORES = {f"{part}_{name}" for part in ("val", "test") for name in evaluate.SCORES}
DERIVED = {"floor_gap", "deviation", "flops", "memory_above_idle"}  # by train/result.py, compare and report


def test_every_metric_is_shown_or_said_not_to_be() -> None:
    shown = {metric.key for rows in TABLE.values() for metric in rows}
    for key in METRICS:
        assert key in shown or key in NOT_SHOWN, (
            f"{key} is in METRICS of train/metrics.py: add a row to TABLE of report/metrics.py, or to NOT_SHOWN"
        )


def test_every_metric_that_is_shown_is_computed() -> None:
    rows = [metric for rows in TABLE.values() for metric in rows]
    for key in (*(metric.key for metric in (*rows, *FIRST_COLUMNS, *STUDY_PAGE, *STUDY_TEXT)), *NOT_SHOWN):
        assert key in METRICS or key in SCORES | DERIVED, (
            f"report/metrics.py shows {key}: compute it in METRICS of train/metrics.py"
        )
