"""Loss against compute: a power law through each family's sizes, and how much compute one saves over the other.

L = E0 + A C^-alpha. E0 is the text's entropy where it is known (tales); elsewhere it is fitted only from six sizes on,
since fewer do not determine three numbers, and taken as 0 below that. Nothing is said beyond twice the compute that
was measured. Where the law misses the means by more than the seeds' noise, straight lines between neighbouring sizes
(in the logarithms) take its place, and nothing is said beyond the sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanokimi.compare.stats import paired_t

ENOUGH_SIZES = 6
BEYOND = 2.0
NOISE = 3.0
"""Standard errors of a mean that a law may be off before it is said not to describe the sizes."""
CANDIDATES = 60


@dataclass(frozen=True)
class Fit:
    """Parameters of one or many (shape R) power laws."""

    e0_R: np.ndarray
    log_a_R: np.ndarray
    alpha_R: np.ndarray

    def loss(self, compute: float | np.ndarray) -> np.ndarray:
        """The loss at a compute; for one law also at many."""
        return np.asarray(self.e0_R + np.exp(self.log_a_R - self.alpha_R * np.log(compute)))

    def compute_for(self, loss_R: np.ndarray) -> np.ndarray:
        """The compute at which the law reaches a loss; infinite at or below E0, or if it does not fall."""
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
    """By how much a family's law misses the means of its sizes at most, in nats, and whether that may be noise.

    With one seed nothing is known of the noise, and the law is taken.
    """
    means_N, seeds = losses_SN.mean(axis=0), len(losses_SN)
    missed_N = np.abs(fit_power(compute_N, means_N, floor).loss(compute_N) - means_N)
    if seeds < 2:
        return float(missed_N.max()), True
    error = float(np.sqrt(losses_SN.var(axis=0, ddof=1).mean() / seeds))
    return float(missed_N.max()), bool(missed_N.max() <= NOISE * error)


def between_sizes(
    compute_N: np.ndarray, losses_RN: np.ndarray, loss_R: np.ndarray, floor: float | None
) -> np.ndarray:
    """The compute at which straight lines between neighbouring sizes reach a loss: infinite below all of them, 0 above.

    Straight in the logarithms of compute and of the loss above E0, which is 0 where it is not known.
    """
    order = np.argsort(compute_N)
    x_N, e0 = np.log(compute_N[order]), floor or 0.0
    falling_RN = np.minimum.accumulate(np.atleast_2d(losses_RN)[:, order], axis=1)
    found = []
    for losses_N, loss in zip(falling_RN, loss_R, strict=True):
        if not losses_N[-1] <= loss <= losses_N[0]:
            found.append(np.inf if loss < losses_N[-1] else 0.0)
            continue
        y_N = np.log(np.maximum(losses_N - e0, 1e-9))
        found.append(float(np.exp(np.interp(-np.log(max(loss - e0, 1e-9)), -y_N, x_N))))
    return np.array(found)


def multiplier(
    base_compute_N: np.ndarray,
    base_losses_SN: np.ndarray,
    new_compute: float,
    new_losses_S: np.ndarray,
    floor: float | None,
    by_law: bool = True,
) -> dict[str, Any]:
    """How many times `new_compute` the base family needs for the new model's loss.

    The ratio is that of the means; `ci95` the t interval of the seeds' own ratios in the logarithm, None with one seed
    or where a seed's curve does not reach the loss.
    `ratio` is None outside of half the smallest to twice the largest compute of the base, or outside of its sizes where
    lines between them stand for its law; `bound` then says which side.
    """

    def compute_for(losses_RN: np.ndarray, loss_R: np.ndarray) -> np.ndarray:
        if by_law:
            return fit_power(base_compute_N, losses_RN, floor).compute_for(loss_R)
        return between_sizes(base_compute_N, losses_RN, loss_R, floor)

    seeds, beyond = len(new_losses_S), BEYOND if by_law else 1.0
    needed = float(compute_for(base_losses_SN.mean(axis=0), new_losses_S.mean()[None])[0])
    lowest, highest = base_compute_N.min() / beyond, base_compute_N.max() * beyond
    if not lowest <= needed <= highest:
        side = "more than" if needed > highest else "less than"
        edge = highest if needed > highest else lowest
        return {"ratio": None, "ci95": None, "bound": [side, float(edge / new_compute)]}
    ratios_S = compute_for(base_losses_SN, new_losses_S) / new_compute
    sure = None
    if seeds > 1 and np.isfinite(ratios_S).all() and (ratios_S > 0).all():
        sure = paired_t(list(np.log(ratios_S)), [0.0] * seeds)
    return {
        "ratio": needed / new_compute,
        "ci95": None if sure is None else [math.exp(sure.low), math.exp(sure.high)],
        "bound": None,
    }


def describe_fit(compute_N: Sequence[float], losses_SN: np.ndarray, floor: float | None) -> dict[str, Any]:
    """One family's law through the means over seeds, and how E0 was come by."""
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
