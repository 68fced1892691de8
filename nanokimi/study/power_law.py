"""Loss against compute: a power law through each family's sizes, and how much compute one saves against the other.

L = E0 + A C^-alpha. E0 is the text's entropy if it is known (tales). Otherwise it is fitted to ENOUGH_SIZES or more,
and taken as 0 for fewer, which do not determine three numbers. The law is not used far beyond the compute that was
measured (BEYOND). If it misses the means by more than the noise of the seeds, straight lines between neighbouring sizes
(in the logarithms) replace it, and they are not used beyond the sizes at all.

A few sizes do not determine which curve joins them. Another curve, or leaving one size out, may move a ratio by more
than the seeds do, so each ratio is read on several curves, all readings are reported, and the interval covers them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nanokimi.measure.stats import paired_t

ENOUGH_SIZES = 6
BEYOND = 2.0
"""How far the law is used, as a multiple of the largest compute that was measured."""
NOISE = 3.0
"""Standard errors of a mean that a law may miss the sizes by and still count as describing them."""
CANDIDATES = 60
LAW, FLOORLESS_LAW, LINES, CUBIC = "power law", "power law without a floor", "lines", "monotone cubic"
FEWEST_SIZES = 3
"""The fewest that a curve may go through when one is left out."""

ComputeFor = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Maps (compute_N, losses_RN, loss_R) to the compute at which each row's curve reaches its loss."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a family."""

    compute_N: np.ndarray
    losses_SN: np.ndarray
    """By seed and size."""
    search_N: np.ndarray
    """The variances that a search for each size's own settings, such as its rate, adds to the losses."""
    shared_N: np.ndarray
    """Those of the search that all sizes have settings of: its luck moves them together."""

    def take(self, kept: np.ndarray) -> Sizes:
        """Some of the sizes, by index."""
        return Sizes(self.compute_N[kept], self.losses_SN[:, kept], self.search_N[kept], self.shared_N[kept])


@dataclass(frozen=True)
class Size:
    """One size of another family, whose loss a family is to reach."""

    compute: float
    losses_S: np.ndarray
    search: float = 0.0
    """The variance that the search for settings adds to its loss."""


@dataclass(frozen=True)
class Fit:
    """Parameters of one or many (shape R) power laws."""

    e0_R: np.ndarray
    log_a_R: np.ndarray
    alpha_R: np.ndarray

    def loss(self, compute: float | np.ndarray) -> np.ndarray:
        """The loss at a compute. A single law also takes an array of them."""
        return np.asarray(self.e0_R + np.exp(self.log_a_R - self.alpha_R * np.log(compute)))

    def compute_for(self, loss_R: np.ndarray) -> np.ndarray:
        """The compute at which the law reaches a loss: infinite at or below E0, or if the law does not fall."""
        above_R = loss_R - self.e0_R
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            log_c_R = (self.log_a_R - np.log(np.where(above_R > 0, above_R, np.nan))) / self.alpha_R
            found_R = np.exp(log_c_R)
        return np.where((above_R > 0) & (self.alpha_R > 0) & np.isfinite(found_R), found_R, np.inf)


def fit_power(compute_N: np.ndarray, losses_RN: np.ndarray, floor: float | None) -> Fit:
    """Least squares in the logarithm, one law for each row of losses."""
    losses_RN = np.atleast_2d(losses_RN)
    if floor is not None or len(compute_N) < ENOUGH_SIZES:
        return _with_e0(compute_N, losses_RN, np.full(len(losses_RN), floor or 0.0))[0]
    lowest_R = losses_RN.min(axis=1)
    best, least_R = None, np.full(len(losses_RN), np.inf)
    for share in np.linspace(0, 0.995, CANDIDATES):
        fit, error_R = _with_e0(compute_N, losses_RN, share * lowest_R)
        if best is None:
            best, least_R = fit, error_R
            continue
        better_R = error_R < least_R
        pairs = zip(
            (fit.e0_R, fit.log_a_R, fit.alpha_R), (best.e0_R, best.log_a_R, best.alpha_R), strict=True
        )
        best = Fit(*(np.where(better_R, new, old) for new, old in pairs))
        least_R = np.where(better_R, error_R, least_R)
    assert best is not None
    return best


def _with_e0(compute_N: np.ndarray, losses_RN: np.ndarray, e0_R: np.ndarray) -> tuple[Fit, np.ndarray]:
    """The law with E0 given, and its squared error in the loss."""
    x_N = np.log(compute_N)
    y_RN = np.log(np.maximum(losses_RN - e0_R[:, None], 1e-9))
    centred_N = x_N - x_N.mean()
    slope_R = (y_RN * centred_N).sum(axis=1) / (centred_N**2).sum()
    fit = Fit(e0_R, y_RN.mean(axis=1) - slope_R * x_N.mean(), -slope_R)
    predicted_RN = e0_R[:, None] + np.exp(fit.log_a_R[:, None] - fit.alpha_R[:, None] * x_N)
    return fit, ((predicted_RN - losses_RN) ** 2).sum(axis=1)


def misfit(compute_N: np.ndarray, losses_SN: np.ndarray, floor: float | None) -> tuple[float, bool]:
    """The most by which a family's law misses the mean of a size, in nats, and whether that may be noise.

    With one seed the noise is unknown, and the law is used.
    """
    means_N, seeds = losses_SN.mean(axis=0), len(losses_SN)
    missed_N = np.abs(fit_power(compute_N, means_N, floor).loss(compute_N) - means_N)
    if seeds < 2:
        return float(missed_N.max()), True
    error = float(np.sqrt(losses_SN.var(axis=0, ddof=1).mean() / seeds))
    return float(missed_N.max()), bool(missed_N.max() <= NOISE * error)


def between_sizes(
    compute_N: np.ndarray,
    losses_RN: np.ndarray,
    loss_R: np.ndarray,
    floor: float | None,
    cubic: bool = False,
) -> np.ndarray:
    """The compute at which a curve through the sizes reaches a loss: infinite below all their losses, 0 above.

    The curve is made of straight lines between neighbouring sizes, or is the monotone cubic through all of them, in the
    logarithms of compute and of the loss above E0, which is 0 if it is not known.
    """
    order = np.argsort(compute_N)
    x_N, e0 = np.log(compute_N[order]), floor or 0.0
    falling_RN = np.minimum.accumulate(np.atleast_2d(losses_RN)[:, order], axis=1)
    found = []
    for losses_N, loss in zip(falling_RN, loss_R, strict=True):
        if not losses_N[-1] <= loss <= losses_N[0]:
            found.append(np.inf if loss < losses_N[-1] else 0.0)
            continue
        y_N, y = -np.log(np.maximum(losses_N - e0, 1e-9)), -math.log(max(loss - e0, 1e-9))
        first_N = np.append(True, np.diff(y_N) > 0)  # the first of several sizes with the same loss
        read = monotone_cubic if cubic else np.interp
        found.append(float(np.exp(read(y, y_N[first_N], x_N[first_N]))))
    return np.array(found)


def monotone_cubic(x: float, x_N: np.ndarray, y_N: np.ndarray) -> float:
    """The monotone cubic of Fritsch and Carlson through points in order, at `x` (scipy's PchipInterpolator)."""
    if len(x_N) < 3:
        return float(np.interp(x, x_N, y_N))
    width, rise = np.diff(x_N), np.diff(y_N) / np.diff(x_N)
    slope_N = np.zeros(len(x_N))
    for i in range(1, len(x_N) - 1):
        if rise[i - 1] * rise[i] > 0:
            before, after = 2 * width[i] + width[i - 1], width[i] + 2 * width[i - 1]
            slope_N[i] = (before + after) / (before / rise[i - 1] + after / rise[i])
    for end, (w0, w1), (r0, r1) in ((0, width[:2], rise[:2]), (-1, width[:-3:-1], rise[:-3:-1])):
        slope = ((2 * w0 + w1) * r0 - w0 * r1) / (w0 + w1)
        if slope * r0 <= 0:
            slope = 0.0
        elif r0 * r1 <= 0 and abs(slope) > 3 * abs(r0):
            slope = 3 * r0
        slope_N[end] = slope
    i = int(np.clip(np.searchsorted(x_N, x) - 1, 0, len(width) - 1))
    t, h = (x - x_N[i]) / width[i], width[i]
    ends = y_N[i] * (1 + 2 * t) * (1 - t) ** 2 + y_N[i + 1] * t**2 * (3 - 2 * t)
    return float(ends + h * slope_N[i] * t * (1 - t) ** 2 - h * slope_N[i + 1] * t**2 * (1 - t))


def curves_through(sizes: int, floor: float | None) -> dict[str, ComputeFor]:
    """The curves that a ratio is read on. Without a known floor or ENOUGH_SIZES, both laws have E0 = 0 and are one."""

    def by_law(
        compute_N: np.ndarray, losses_RN: np.ndarray, loss_R: np.ndarray, e0: float | None
    ) -> np.ndarray:
        return fit_power(compute_N, losses_RN, e0).compute_for(loss_R)

    found: dict[str, ComputeFor] = {LAW: partial(by_law, e0=floor)}
    if floor is not None or sizes >= ENOUGH_SIZES:
        found[FLOORLESS_LAW] = partial(by_law, e0=0.0)
    found[LINES] = partial(between_sizes, floor=floor)
    found[CUBIC] = partial(between_sizes, floor=floor, cubic=True)
    return found


def multiplier(base: Sizes, new: Size, floor: float | None, by_law: bool = True) -> dict[str, Any]:
    """How many times the new model's compute the base family needs for its loss, by the base's law or by lines.

    `ratio`, and `bound` if that is None, are read on the chosen curve (see `read_ratio`). `sensitivity` lists the
    readings on every curve, with all sizes and without each. `range` is the lowest and highest ratio among them. `ci95`
    runs from the lowest to the highest end of their intervals, and is None if the chosen curve has none.
    """
    every = np.arange(len(base.compute_N))
    chosen, fits = LAW if by_law else LINES, []
    for left_out in (None, *every):
        kept = every[every != left_out] if left_out is not None else every
        if len(kept) < FEWEST_SIZES:
            continue
        for name, compute_for in curves_through(len(kept), floor).items():
            beyond = 1.0 if name in (LINES, CUBIC) else BEYOND
            found = read_ratio(compute_for, base.take(kept), new, beyond)
            without = None if left_out is None else float(base.compute_N[left_out])
            fits.append({"curve": name, "without": without, **found})
    main = next(one for one in fits if one["curve"] == chosen and one["without"] is None)
    if main["ratio"] is None:
        return {**main, "range": None, "sensitivity": fits}
    read = [one for one in fits if one["ratio"] is not None]
    ends = [end for one in read for end in one["ci95"] or [one["ratio"]]]
    ratios = [one["ratio"] for one in read]
    envelope = None if main["ci95"] is None else [min(ends), max(ends)]
    return {
        **main,
        "seeds95": main["ci95"],
        "ci95": envelope,
        "range": [min(ratios), max(ratios)],
        "sensitivity": fits,
    }


def read_ratio(compute_for: ComputeFor, base: Sizes, new: Size, beyond: float) -> dict[str, Any]:
    """The ratio of the means read on one curve, and `ci95`, the t interval of each seed's ratio in the logarithm.

    The interval includes the searches' noise. It is None with one seed, or if a seed's curve does not reach the loss.
    `ratio` is None if it would lie more than `beyond` times outside the sizes, and `bound` then says on which side.
    """
    compute_N, means_N = base.compute_N, base.losses_SN.mean(axis=0)
    seeds, mean_R = len(new.losses_S), new.losses_S.mean()[None]
    needed = float(compute_for(compute_N, means_N[None], mean_R)[0])
    lowest, highest = compute_N.min() / beyond, compute_N.max() * beyond
    if not lowest <= needed <= highest:
        side = "more than" if needed > highest else "less than"
        edge = highest if needed > highest else lowest
        return {"ratio": None, "ci95": None, "bound": [side, float(edge / new.compute)]}
    found: dict[str, Any] = {"ratio": needed / new.compute, "ci95": None, "bound": None}
    ratios_S = compute_for(compute_N, base.losses_SN, new.losses_S) / new.compute
    if seeds < 2 or not np.isfinite(ratios_S).all() or not (ratios_S > 0).all():
        return found
    # Move each loss by one deviation of its search's noise, and all of the family by those of the search that they
    # share, up and down. Keep the larger step that reaches the loss.
    alone = np.diag(np.sqrt(np.append(base.search_N, new.search)))
    deviations = np.vstack([alone, np.sqrt(np.append(base.shared_N, 0.0))])
    steps_MN = np.concatenate([sign * deviations for sign in (1.0, -1.0)])
    moved_M = compute_for(compute_N, means_N + steps_MN[:, :-1], mean_R + steps_MN[:, -1])
    with np.errstate(divide="ignore"):
        steps_M = np.abs(np.log(moved_M / needed))
    steps_2N = np.where(np.isfinite(steps_M), steps_M, -1.0).reshape(2, -1)
    if (steps_2N.max(axis=0) < 0).any():
        return found
    extra = float((steps_2N.max(axis=0) ** 2).sum())
    sure = paired_t(list(np.log(ratios_S)), [0.0] * seeds, extra_variance=extra)
    return {**found, "ci95": [math.exp(sure.low), math.exp(sure.high)]}


def describe_fit(compute_N: Sequence[float], losses_SN: np.ndarray, floor: float | None) -> dict[str, Any]:
    """One family's law through the means over seeds, and where its E0 comes from."""
    fit = fit_power(np.asarray(compute_N), losses_SN.mean(axis=0), floor)
    missed, describes = misfit(np.asarray(compute_N), losses_SN, floor)
    how = "fitted"
    if floor is not None:
        how = "the text's entropy"
    elif len(compute_N) < ENOUGH_SIZES:
        how = f"taken as 0: {len(compute_N)} sizes do not determine it"
    return {
        "e0": float(fit.e0_R[0]),
        "log_a": float(fit.log_a_R[0]),
        "alpha": float(fit.alpha_R[0]),
        "e0_is": how,
        "misses_by": missed,
        "describes": describes,
    }
