"""The Compare tab: the report of any finished runs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import gradio as gr

from nanokimi.errors import UserError
from nanokimi.play.gathered import report_page
from nanokimi.play.markup import empty, frame, message
from nanokimi.play.places import Places, last_written, metrics_of

PAGES_KEPT, MOST_CHOSEN = 8, 8
NOTHING = "No run has finished yet. Train with `nanokimi train` or `nanokimi compare`, then press Refresh."


class Reports:
    """Pages of reports, made one at a time and kept until a run in them changes."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.kept: dict[tuple[Any, ...], str] = {}
        self.lock = threading.Lock()

    def page(self, labels: Any) -> str:
        """The report on the runs with these labels. Raises UserError if there is none."""
        offered = self.places.comparable()
        wanted = labels if isinstance(labels, list) else [labels] if labels else []
        unknown = [str(label)[:80] for label in wanted if label not in offered]
        if unknown:
            raise UserError(f"There is no finished run '{unknown[0]}' here: press Refresh.")
        if not wanted:
            raise UserError("No run is chosen: choose at least one.")
        if len(wanted) > MOST_CHOSEN:
            raise UserError(f"{len(wanted)} runs are chosen: choose at most {MOST_CHOSEN}.")
        folders = [offered[label] for label in offered if label in wanted]
        with self.lock:
            key = tuple((folder, stamp(folder)) for folder in folders)
            if key not in self.kept:
                self.kept[key] = report_page(folders)
                for old in list(self.kept)[:-PAGES_KEPT]:
                    del self.kept[old]
            return self.kept[key]


def stamp(folder: Path) -> float:
    """When a run or its report was last written."""
    return last_written([*metrics_of(folder), *folder.glob("report.json")])


def build(places: Places) -> None:
    """Make the tab."""
    reports = Reports(places)
    with gr.Row(elem_classes="nk-actions"):
        chosen = gr.Dropdown(
            list(places.comparable()),
            value=list(places.comparable())[:1],
            multiselect=True,
            label="Finished runs and comparisons",
            elem_id="nk-compare-runs",
            scale=1,
        )
        again = gr.Button("Refresh", elem_id="nk-compare-refresh", scale=0, min_width=110)
        go = gr.Button("Compare", variant="primary", elem_id="nk-compare", scale=0, min_width=150)
    begin = empty("Nothing compared yet", "Choose runs and press Compare.") if places.comparable() else ""
    page = gr.HTML(
        begin or empty("Nothing to compare", NOTHING),
        elem_id="nk-report",
        elem_classes="nk-plain",
        apply_default_css=False,
    )

    def compare(labels: Any) -> str:
        try:
            return frame(reports.page(labels), "Report of the chosen runs")
        except (UserError, OSError) as error:
            return message(str(UserError(str(error))))

    def refresh(labels: Any) -> Any:
        offered = list(places.comparable())
        return gr.update(choices=offered, value=[label for label in labels or [] if label in offered])

    go.click(compare, chosen, page, concurrency_limit=2, show_progress="minimal", api_name="compare")
    again.click(refresh, chosen, chosen, show_progress="hidden", api_visibility="private")
