"""Loss spikes: training steps whose loss stands far above what the steps before them suggest.

The rule is a running outlier test with median and median absolute deviation (Hampel's identifier), which a
few outliers among the steps before cannot move. docs/report.md tells how often it is wrong.
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
"""Steps before that say what is usual. The first ones of a run have none and are not judged."""
RECENT = 10
"""The last of them: where the loss stands if it is falling."""
MIN_DEVIATIONS = 8.0
"""Least height in standard deviations: from so few steps that is itself only roughly known."""
MIN_HEIGHT = 0.1
"""Least height in nats per token, 10 % more perplexity: less is nobody's concern, however smooth the loss."""
QUIET_STEPS = 5
"""Steps back below the threshold that end a spike; a shorter rest is part of it."""
MAD_TO_DEVIATION = 1.4826
"""Standard deviation over median absolute deviation, of Gaussian noise."""


@dataclass(frozen=True)
class Spike:
    """A stretch of high losses, by its highest."""

    index: int
    """Place of the peak in the sequence of losses, from 0."""
    loss: float
    """The peak, nats per token."""
    usual: float
    """What the steps before the stretch suggest, nats per token."""


def find_spikes(losses: Sequence[float]) -> list[Spike]:
    """The spikes among the training losses of consecutive steps (nats per token), in order.

    A loss is high if it exceeds what is usual by more than MIN_DEVIATIONS standard deviations and by more
    than MIN_HEIGHT; what is usual and how far losses scatter come from the WINDOW losses before it. High
    steps that fewer than QUIET_STEPS lower ones part are one spike. A loss that stays high for WINDOW steps
    is the new usual level: one spike, not one for each step. Losses that are not finite are passed over.
    """
    finite = [(i, loss) for i, loss in enumerate(losses) if math.isfinite(loss)]
    values = [loss for _, loss in finite]
    before: deque[float] = deque(maxlen=WINDOW)  # without spikes: later ones must not look usual
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
    """The lower of two medians: a falling loss is held against its last steps, a rising one against older."""
    return min(median(before), median(before[-RECENT:]))


def _limit(before: Sequence[float]) -> float:
    """The height above which a loss is high. The scatter is that of the changes: they know no trend."""
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
    return min(start + WINDOW, len(values))  # still high after so long, or at the end of the run


def spike_entries(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The spikes in a run's metrics.jsonl, as result.json holds them; losses in nats per token."""
    trained = [r for r in records if r["kind"] == "train" and r.get("loss") is not None]
    spikes = find_spikes([record["loss"] for record in trained])
    return [{"step": trained[s.index]["step"], "loss": s.loss, "usual": s.usual} for s in spikes]
