"""Loss spikes: training steps whose loss is far above that of the steps before them.

The rule is a running outlier test with median and median absolute deviation (Hampel's identifier), on which a
few earlier outliers have no effect. docs/report.md says how often it is wrong.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

WINDOW = 50
"""Earlier steps that define the usual loss. The first steps of a run have none and are not judged."""
RECENT = 10
"""The last of these steps, which define the usual loss while it is falling."""
MIN_DEVIATIONS = 8.0
"""Least height in standard deviations; high, because the deviation of few steps is itself only roughly known."""
MIN_HEIGHT = 0.1
"""Least height in nats per token, 10% more perplexity. Less does not matter, however smooth the loss is."""
QUIET_STEPS = 5
"""Consecutive steps below the threshold that end a spike."""
MAD_TO_DEVIATION = 1.4826
"""Ratio of standard deviation to median absolute deviation in Gaussian noise."""


@dataclass(frozen=True)
class Spike:
    """A stretch of high losses, described by its peak."""

    index: int
    """Index of the peak in the sequence of losses."""
    loss: float
    """The peak, nats per token."""
    usual: float
    """The usual loss before the stretch, nats per token."""


def find_spikes(losses: Sequence[float]) -> list[Spike]:
    """The spikes among the training losses of consecutive steps (nats per token), in order.

    A loss is high if it exceeds the usual loss by more than MIN_DEVIATIONS standard deviations and by more
    than MIN_HEIGHT. The usual loss and its deviation come from the WINDOW losses before it. High steps with
    fewer than QUIET_STEPS lower ones in between are one spike. A loss that stays high for WINDOW steps is
    one spike and becomes the usual loss. Losses that are not finite are ignored.
    """
    finite = [(i, loss) for i, loss in enumerate(losses) if math.isfinite(loss)]
    values = [loss for _, loss in finite]
    before: deque[float] = deque(maxlen=WINDOW)  # without spikes, so that later ones do not look usual
    spikes, i = [], 0
    while i < len(values):
        if len(before) < WINDOW or values[i] <= (limit := _limit(list(before))):
            before.append(values[i])
            i += 1
            continue
        end = _end(values, i, limit)
        peak = max(range(i, end), key=values.__getitem__)
        spikes.append(Spike(finite[peak][0], values[peak], _usual(list(before))))
        if end - i == WINDOW:
            before.extend(values[i:end])
        i = end
    return spikes


def _usual(before: Sequence[float]) -> float:
    """The lower of two medians: a falling loss is compared with recent steps, a rising one with older steps."""
    return min(median(before), median(before[-RECENT:]))


def _limit(before: Sequence[float]) -> float:
    """The threshold of a high loss. The deviation is that of the changes, which have no trend."""
    changes = [after - loss for loss, after in pairwise(before)]
    middle = median(changes)
    deviation = MAD_TO_DEVIATION * median(abs(change - middle) for change in changes) / math.sqrt(2)
    return _usual(before) + max(MIN_DEVIATIONS * deviation, MIN_HEIGHT)


def _end(values: Sequence[float], start: int, limit: float) -> int:
    """The index after the last step of the spike that begins at `start`, at most WINDOW after it."""
    last = start
    for i in range(start, min(start + WINDOW, len(values))):
        if values[i] > limit:
            last = i
        elif i - last >= QUIET_STEPS:
            return last + 1
    return min(start + WINDOW, len(values))  # still high after WINDOW steps, or at the end of the run


def spike_entries(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The spikes in the records of metrics.jsonl, in the form of result.json; losses in nats per token."""
    trained = [r for r in records if r["kind"] == "train" and r.get("loss") is not None]
    spikes = find_spikes([record["loss"] for record in trained])
    return [{"step": trained[s.index]["step"], "loss": s.loss, "usual": s.usual} for s in spikes]
