"""The Watch tab: a run in progress, seen again every few seconds."""

from __future__ import annotations

from typing import Any

import gradio as gr

from nanokimi.errors import UserError
from nanokimi.play.markup import empty, message
from nanokimi.play.places import Places, offered
from nanokimi.play.progress import progress_page
from nanokimi.play.watch import Watcher

SECONDS_BETWEEN = 2.0
NOTHING = "Start a training with `nanokimi train` or `nanokimi compare`: it appears here."


def build(places: Places) -> gr.Timer:
    """Make the tab; returns its clock, which stands still until the tab is seen."""
    watcher = Watcher()
    first = list(places.watchable())
    chosen = gr.Dropdown(
        first, value=first[0] if first else None, label="Run or comparison", elem_id="nk-watch-run"
    )
    page = gr.HTML(
        watched(places, watcher, chosen.value),
        elem_id="nk-watch",
        elem_classes="nk-plain",
        apply_default_css=False,
    )
    timer = gr.Timer(SECONDS_BETWEEN, active=False)
    known = gr.State(first)

    def tick(label: Any, before: list[str]) -> tuple[Any, str, list[str]]:
        labels = list(places.watchable())
        if label is None and labels:
            label = labels[0]
        labels = offered(labels, label)
        same = sorted(labels) == sorted(before)  # an open list is not disturbed
        update = gr.skip() if same else gr.update(choices=labels, value=label)
        return update, watched(places, watcher, label), labels

    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": 4, "api_visibility": "private"}
    timer.tick(tick, [chosen, known], [chosen, page, known], **quiet)
    chosen.input(tick, [chosen, known], [chosen, page, known], **quiet)
    return timer


def watched(places: Places, watcher: Watcher, label: Any) -> str:
    """What is known of the run with this label."""
    if label is None:
        return empty("No run to watch", NOTHING)
    folder = places.watchable().get(label) if isinstance(label, str) else None
    if folder is None:
        return message(f"There is no run '{str(label)[:80]}' here any more: choose another.")
    try:
        return progress_page(watcher.look(folder))
    except (UserError, OSError) as error:  # the run may be deleted while it is read
        return message(str(UserError(str(error))))
