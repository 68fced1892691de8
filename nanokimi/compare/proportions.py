"""A share over several seeds whose models answered the same questions: 3 times 50 answers are not 150 trials.

A hard question is hard for every seed, and a bad seed is bad at every question. So the interval covers two sources of
chance at once: questions (each by its mean over seeds) and seeds (each by its mean over questions).
"""

from __future__ import annotations

import numpy as np

from nanokimi.measure.stats import LEVEL, t_quantile
from nanokimi.measure.story_world import Proportion, wilson


def over_seeds(right_SQ: np.ndarray) -> Proportion:
    """The share over seeds (S) and questions (Q), as if both had been drawn.

    The variance of the mean is that of the questions' means over Q plus that of the seeds' means over S. The noise of
    single answers is counted in both, which errs on the wide side. From the variance follows how many independent
    answers the S times Q are worth, and Wilson's interval is that of so many, with the t quantile of Satterthwaite's
    degrees of freedom.
    """
    right_SQ = np.asarray(right_SQ, dtype=float)
    seeds, questions = right_SQ.shape
    share = float(right_SQ.mean())
    if seeds < 2 or questions < 2 or share in (0.0, 1.0):
        # With one seed, one question or equal answers, count only as many answers as there are questions.
        return Proportion(share, *wilson(share * questions, questions), right_SQ.size)
    by_question = float(right_SQ.mean(axis=0).var(ddof=1)) / questions
    by_seed = float(right_SQ.mean(axis=1).var(ddof=1)) / seeds
    variance = max(by_question + by_seed, share * (1 - share) / right_SQ.size)
    degrees = (by_question + by_seed) ** 2 / (by_question**2 / (questions - 1) + by_seed**2 / (seeds - 1))
    worth = share * (1 - share) / variance
    low, high = wilson(share * worth, worth, t_quantile(1 - LEVEL / 2, max(int(degrees), 1)))
    return Proportion(share, low, high, right_SQ.size)
