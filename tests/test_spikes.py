"""Loss spikes are found where they are, and falling, noisy, short or constant losses have none."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nanokimi.config import RunConfig
from nanokimi.measure import spikes
from nanokimi.measure.spikes import MIN_HEIGHT, QUIET_STEPS, RECENT, WINDOW, Spike, find_spikes, spike_entries
from nanokimi.runtime.files import read_json
from nanokimi.train.run import train_alone

Noise = Callable[[random.Random], float]
STEPS = 2000
NOISES: dict[str, Noise] = {
    "quiet": lambda rng: rng.gauss(0, 0.02),
    "gaussian": lambda rng: rng.gauss(0, 0.06),
    "loud": lambda rng: rng.gauss(0, 0.3),
}


def curve(seed: int, noise: Noise, steps: int = STEPS) -> list[float]:
    """A training loss from 4.2 nats down to 1.3, first fast, then slowly."""
    rng = random.Random(seed)
    return [1.3 + 2.0 * math.exp(-i / 40) + 0.9 / (1 + i / 120) + noise(rng) for i in range(steps)]


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_noise_around_a_falling_curve_is_no_spike(noise: Noise) -> None:
    """50 seeds of 2,000 steps: not one false alarm in 100,000 steps."""
    assert [find_spikes(curve(seed, noise)) for seed in range(50)] == [[]] * 50


def test_skewed_noise_gives_few() -> None:
    """Batches of 12 windows whose losses are log-normal: about 12 false alarms in a million steps."""

    def noise(rng: random.Random) -> float:
        return sum(rng.lognormvariate(0, 0.5) for _ in range(12)) / 24

    assert sum(len(find_spikes(curve(seed, noise))) for seed in range(50)) <= 3


@pytest.mark.parametrize("step", [WINDOW, 120, 700, STEPS - 1])
@pytest.mark.parametrize("seed", range(3))
def test_an_injected_jump_is_found_at_its_step(seed: int, step: int) -> None:
    losses = curve(seed, NOISES["gaussian"])
    losses[step] += 1.2
    (spike,) = find_spikes(losses)
    assert spike.index == step and spike.loss == losses[step]
    last = sorted(losses[step - RECENT : step])
    assert last[0] <= spike.usual <= (last[4] + last[5]) / 2


@pytest.mark.parametrize(("height", "share"), [(0.5, 0.61), (0.6, 0.87)])
def test_a_jump_near_the_threshold_is_found_as_often_as_the_document_says(
    height: float, share: float
) -> None:
    """docs/report.md has the shares: 14 jumps in each of 20 curves, after the loss has become level."""
    places, found = range(600, STEPS, 100), 0
    for seed in range(20):
        losses = curve(seed, NOISES["gaussian"])
        for step in places:
            losses[step] += height
        found += len({spike.index for spike in find_spikes(losses)} & set(places))
    assert found / (20 * len(places)) == pytest.approx(share, abs=0.01)


def test_a_spike_with_its_decay_is_one_and_its_peak_is_told() -> None:
    losses = curve(0, NOISES["gaussian"])
    for i in range(30):  # two steps up, then slowly back
        losses[1000 + i] += 1.5 if i == 0 else 3.0 * math.exp(-(i - 1) / 10)
    assert [spike.index for spike in find_spikes(losses)] == [1001]


def test_a_rest_of_a_few_steps_does_not_part_a_spike() -> None:
    def with_gap(gap: int) -> list[float]:
        losses = curve(0, NOISES["gaussian"])
        losses[1000] += 2.0
        losses[1001 + gap] += 3.0
        return losses

    assert [spike.index for spike in find_spikes(with_gap(QUIET_STEPS - 1))] == [1000 + QUIET_STEPS]
    assert [spike.index for spike in find_spikes(with_gap(QUIET_STEPS))] == [1000, 1001 + QUIET_STEPS]


def test_a_spike_does_not_hide_the_next() -> None:
    """Thirty high steps would make a level of their own of the 50 before, were they counted among them."""
    losses = curve(0, NOISES["gaussian"])
    for i in (*range(1000, 1030), 1040):
        losses[i] += 1.0
    first, second = find_spikes(losses)
    assert second.index == 1040 and second.usual == pytest.approx(first.usual, abs=0.05)


def test_a_shift_to_a_higher_level_is_one_spike() -> None:
    losses = curve(0, NOISES["gaussian"])
    shifted = losses[:1000] + [loss + 1.0 for loss in losses[1000:]]
    (spike,) = find_spikes(shifted)
    assert 1000 <= spike.index < 1000 + WINDOW


def test_a_slow_rise_is_found_and_a_fall_that_ends_is_not() -> None:
    """Over a hundred steps nothing jumps, but the loss ends where the older steps would not have it."""
    losses = curve(0, NOISES["gaussian"])
    rising = [loss + 2.0 * min(max(i - 1000, 0), 100) / 100 for i, loss in enumerate(losses)]
    found = find_spikes(rising)
    assert 1 <= len(found) <= 2 and all(1000 < spike.index < 1100 + RECENT for spike in found)
    falling = [3.0 - 0.03 * min(i, 60) for i in range(300)]
    assert find_spikes(falling) == []


def test_a_shift_to_a_lower_level_and_a_short_dip_are_none() -> None:
    losses = curve(0, NOISES["gaussian"])
    assert find_spikes(losses[:1000] + [loss - 1.0 for loss in losses[1000:]]) == []
    losses[700] -= 1.0
    assert find_spikes(losses) == []


def test_the_start_is_not_judged() -> None:
    assert find_spikes([4.0, 9.0, 8.0, *curve(0, NOISES["gaussian"])]) == []
    assert find_spikes([5.0] * (WINDOW - 1) + [50.0]) == []


def test_short_and_empty_runs_have_none() -> None:
    assert find_spikes([]) == []
    assert find_spikes([3.0]) == []
    assert find_spikes([3.0] * WINDOW) == []


def test_a_constant_loss_needs_the_least_height() -> None:
    assert find_spikes([2.0] * 300) == []
    assert find_spikes([2.0] * 200 + [2.0 + 0.9 * MIN_HEIGHT] + [2.0] * 50) == []
    assert find_spikes([2.0] * 200 + [2.0 + 1.1 * MIN_HEIGHT] + [2.0] * 50) == [Spike(200, 2.11, 2.0)]


def test_losses_that_are_not_finite_are_passed_over() -> None:
    losses = [2.0] * 100 + [math.nan, math.inf] + [2.0] * 20 + [4.0] + [2.0] * 9
    assert find_spikes(losses) == [Spike(122, 4.0, 2.0)]


def test_entries_name_the_steps_of_the_records() -> None:
    """Steps are the records' own: other kinds lie between, and a step without a loss counts for nothing."""
    records = [{"kind": "train", "step": 10 + i, "loss": 2.0 if i != 90 else 3.5} for i in range(120)]
    records[5]["loss"] = None
    records.insert(40, {"kind": "eval", "step": 49, "val_loss": 9.0})
    assert spike_entries(records) == [{"step": 100, "loss": 3.5, "usual": 2.0}]
    assert spike_entries([]) == []


def test_a_run_s_result_holds_its_spikes(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a threshold that every loss exceeds, the ten steps that are judged are one spike."""
    monkeypatch.setattr(spikes, "MIN_DEVIATIONS", 0.0)
    monkeypatch.setattr(spikes, "MIN_HEIGHT", -100.0)
    config = tiny_config(max_steps=WINDOW + 10, eval_every=100, save_every=100)
    train_alone(replace(config, model="nanogpt"), tmp_path / "run")
    (spike,) = read_json(tmp_path / "run" / "result.json")["spikes"]
    assert WINDOW < spike["step"] <= WINDOW + 10 and spike["loss"] > 0 and spike["usual"] > 0
