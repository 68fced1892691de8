"""Learning-rate schedules, by hand and by property."""

from __future__ import annotations

import math
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanokimi.config import OptimConfig
from nanokimi.optim.schedule import SCHEDULES, describe_schedule, lr_scale


def scales(total: int, **options: Any) -> list[float]:
    """The scale at each step from 0 to the end, the end included."""
    return [lr_scale(step, total, OptimConfig(**options)) for step in range(total + 1)]


def test_every_schedule_can_be_configured_and_computed() -> None:
    configured = get_args(get_type_hints(OptimConfig)["schedule"])
    assert {*configured} == {*SCHEDULES}, "config/schema_optim.py and SCHEDULES of optim/schedule.py differ"


def test_wsd_by_hand() -> None:
    values = scales(10, schedule="wsd", warmup_steps=3, decay_fraction=0.4, min_lr_ratio=0.0)
    assert values == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])


def test_wsd_falls_to_its_floor() -> None:
    values = scales(10, schedule="wsd", warmup_steps=0, decay_fraction=0.5, min_lr_ratio=0.2)
    assert values == pytest.approx([1, 1, 1, 1, 1, 1, 0.84, 0.68, 0.52, 0.36, 0.2])


def test_cosine_by_hand() -> None:
    values = scales(6, schedule="cosine", warmup_steps=2, min_lr_ratio=0.1)
    half = math.sqrt(0.5)
    expected = [1 / 3, 2 / 3, 1, 0.55 + 0.45 * half, 0.55, 0.55 - 0.45 * half, 0.1]
    assert values == pytest.approx(expected)


def test_constant_after_warmup() -> None:
    assert scales(5, schedule="constant", warmup_steps=1) == pytest.approx([0.5, 1, 1, 1, 1, 1])
    assert scales(4, schedule="constant", warmup_steps=0) == [1] * 5


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "constant"])
def test_warmup_is_linear_and_never_zero(schedule: Any) -> None:
    values = scales(100, schedule=schedule, warmup_steps=24)
    assert values[:25] == pytest.approx([(step + 1) / 25 for step in range(25)])


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_warmup_takes_at_most_half_of_a_short_run(schedule: Any) -> None:
    values = scales(8, schedule=schedule, warmup_steps=100, min_lr_ratio=0.0)
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert values[8] == pytest.approx(0) and all(b <= a for a, b in zip(values[4:], values[5:], strict=False))
    assert scales(1, schedule=schedule, warmup_steps=100)[0] == pytest.approx(2 / 3)


def test_the_words_name_the_warmup_that_is_taken() -> None:
    """They named 100 steps for a run of 9."""
    optim = OptimConfig(schedule="constant", warmup_steps=100)
    assert describe_schedule(optim, 200) == "100 steps of warm-up, then constant"
    assert describe_schedule(optim, 9) == "4.5 steps of warm-up (100, cut to half the run), then constant"


def test_shape_does_not_depend_on_the_length_of_the_run() -> None:
    """Twice the steps, twice the warm-up: every second value is the same, but for the warm-up's offset."""
    short = scales(50, schedule="wsd", warmup_steps=0)
    long = scales(100, schedule="wsd", warmup_steps=0)
    assert long[::2] == pytest.approx(short)


def test_unknown_length_keeps_the_peak() -> None:
    """A budget in seconds has no step count at first: 1e9 stands for it."""
    for schedule in ("wsd", "cosine"):
        assert lr_scale(150, 1e9, OptimConfig(schedule=schedule, warmup_steps=100)) == pytest.approx(1)


@settings(max_examples=200, deadline=None)
@given(
    total=st.integers(2, 400),
    warmup=st.integers(0, 500),
    decay=st.floats(0.05, 1),
    lowest=st.floats(0, 1),
    schedule=st.sampled_from(["wsd", "cosine", "constant"]),
)
def test_scale_stays_in_bounds_and_never_jumps(
    total: int, warmup: int, decay: float, lowest: float, schedule: Any
) -> None:
    """No step changes the rate by more than the steepest part of the schedule does by design."""
    warm = min(warmup, total / 2)
    optim = OptimConfig(schedule=schedule, warmup_steps=warmup, decay_fraction=decay, min_lr_ratio=lowest)
    values = [lr_scale(step, total, optim) for step in range(total + 1)]
    assert all(0 <= value <= 1 for value in values)
    slope = {
        "wsd": (1 - lowest) / (decay * total),
        "cosine": (1 - lowest) * math.pi / 2 / max(total - warm, 1),
        "constant": 0.0,
    }[schedule]
    bound = max(slope, 1 / (warm + 1)) + 1e-9
    assert all(abs(b - a) <= bound for a, b in zip(values, values[1:], strict=False))
    if schedule != "constant":
        assert values[-1] == pytest.approx(lowest, abs=1e-9)
        peak = values.index(max(values))
        assert all(b <= a + 1e-9 for a, b in zip(values[peak:], values[peak + 1 :], strict=False))
