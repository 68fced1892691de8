"""The built-in stories: a seeded world of children's tales in which the probability of every text is known exactly."""

from nanokimi.tales.parser import Judgement, NotATale, continuations, judge, score, story_scores
from nanokimi.tales.probing import Probe, probes
from nanokimi.tales.sampler import (
    END_OF_TEXT,
    VERSION,
    WORLDS,
    Story,
    generate_text,
    iterate_stories,
    tell,
)

__all__ = [
    "END_OF_TEXT",
    "VERSION",
    "WORLDS",
    "Judgement",
    "NotATale",
    "Probe",
    "Story",
    "continuations",
    "generate_text",
    "iterate_stories",
    "judge",
    "probes",
    "score",
    "story_scores",
    "tell",
]
