"""What went wrong in a run, in plain sentences: spikes, skipped batches, memory that ran out, interruptions.

Spikes and counts come from the run's entry in report.json, the rest from the records of kind "event" in its
metrics.jsonl. A run without incidents, or from before they were recorded, has no sentences.
"""

from __future__ import annotations

from collections.abc import Sequence

from nanokimi.report import units
from nanokimi.report.records import MAX_SPIKES, Record, Run
from nanokimi.runtime.text import listed, one_line

NAMED_SPIKES, NAMED_STEPS = 3, 3
MAX_DETAIL = 200


def incident_lines(run: Run) -> list[str]:
    """A sentence for each kind of incident that the run had, as plain text that is not escaped yet."""
    lines = [_spikes(run), _skipped(run), _rolled_back(run), _out_of_memory(run), _resumed(run)]
    return [line for line in lines if line]


def skipped_batches(run: Run) -> int:
    """Batches that the run drew and did not learn from."""
    counted: int = run.metadata.get("batches_skipped") or 0
    return max(counted, len(_events(run, "nonfinite_skipped")))


def _spikes(run: Run) -> str:
    named = []
    for spike in run.spikes[:NAMED_SPIKES]:
        heights = f"{units.plain(spike['loss'])} against a usual {units.plain(spike['usual'])}"
        named.append(f"step {units.count(spike['step'])} ({heights})")
    if not named:
        return ""
    total = len(run.spikes)
    if total == 1:
        return f"1 loss spike, at {named[0]}."
    marked = f", of which the {MAX_SPIKES} highest are marked" if total > MAX_SPIKES else ""
    which = "the highest at" if total > NAMED_SPIKES else "at"
    return f"{units.count(total)} loss spikes{marked}, {which} {listed(named)}."


def _skipped(run: Run) -> str:
    total = skipped_batches(run)
    if not total:
        return ""
    places = _places(_events(run, "nonfinite_skipped"))
    batches = "1 batch" if total == 1 else f"{units.count(total)} batches"
    return f"{batches} skipped{places}, because the loss or a gradient was not finite."


def _rolled_back(run: Run) -> str:
    events = _events(run, "nonfinite_rolled_back")
    if not events:
        return ""
    why = f"after a loss or gradient that was not finite{_detail(events)}"
    return f"Rolled back to an earlier state {_often(events)}{_places(events)}, {why}."


def _out_of_memory(run: Run) -> str:
    events = _events(run, "out_of_memory")
    if not events:
        return ""
    micro = run.metadata.get("micro_batch_size")
    went_on = f", and went on with micro-batches of {units.count(micro)}" if micro else ""
    return f"Ran out of memory {_often(events)}{_places(events)}{went_on}{_detail(events)}."


def _resumed(run: Run) -> str:
    events = _events(run, "resumed")
    if not events:
        return ""
    return f"Interrupted and resumed {_often(events)}{_places(events)}."


def _events(run: Run, event: str) -> list[Record]:
    return [record for record in run.kind("event") if record.get("event") == event]


def _often(events: Sequence[Record]) -> str:
    return "once" if len(events) == 1 else f"{units.count(len(events))} times"


def _places(events: Sequence[Record]) -> str:
    """ ", at step 5", ", at steps 5, 9 and 12" or ", at steps 5, 9, 12 and 4 more"; empty without events."""
    steps = [units.count(event["step"]) for event in events]
    if not steps:
        return ""
    if len(steps) > NAMED_STEPS + 1:
        steps = [*steps[:NAMED_STEPS], f"{units.count(len(steps) - NAMED_STEPS)} more"]
    return f", at {'step' if len(steps) == 1 else 'steps'} {listed(steps)}"


def _detail(events: Sequence[Record]) -> str:
    """The run's own description of the last of these events, in brackets."""
    text = one_line(events[-1].get("detail") or "").rstrip(".")
    return f" ({text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 3] + '...'})" if text else ""
