"""The settings of the stories that a run writes; `schema` has the others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """The stories written during training and by `nanokimi sample`."""

    prompts: tuple[str, ...] | None = None
    """Beginnings that each model continues. None: the first words of the validation text."""
    max_new_tokens: int = 256
    """Tokens to write."""
    temperature: float = 0.8
    """0: always the likeliest token."""
    top_k: int | None = None
    """Draw among the k likeliest tokens."""
    top_p: float | None = 0.95
    """Draw among the fewest tokens that hold this much probability."""
    min_p: float | None = None
    """Draw among the tokens with at least this share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Above 1: tokens that the prompt or the text already holds become less likely."""
    judged_stories: int = 20
    """Only with tales: openings that each trained model continues for the story world's parser to judge."""
    questions: int = 50
    """Only with tales: facts asked for at each distance (20, 50, 100, 200 words back)."""
