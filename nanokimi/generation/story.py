"""Stories as text, with a run's sampling settings."""

from __future__ import annotations

from collections.abc import Iterator

from nanokimi.config import RunConfig
from nanokimi.data.tokenizers.own import Tokenizer
from nanokimi.generation.engine import generate
from nanokimi.model.build import LanguageModel


def story_ids(model: LanguageModel, tokenizer: Tokenizer, prompt: str, config: RunConfig) -> Iterator[int]:
    """Token ids that continue `prompt`."""
    sample = config.sample
    return generate(
        model,
        tokenizer.encode(prompt).tolist(),
        sample.max_new_tokens,
        temperature=sample.temperature,
        top_k=sample.top_k,
        top_p=sample.top_p,
        seed=config.seed,
        context_length=config.train.context_length,
        stop_id=tokenizer.end_of_text_id,
    )


def stream_story(model: LanguageModel, tokenizer: Tokenizer, prompt: str, config: RunConfig) -> Iterator[str]:
    """Text that continues `prompt`, in pieces.

    A character may take several tokens, so text that may end in a part of a character is held back.
    """
    ids: list[int] = []
    shown = ""
    for token in story_ids(model, tokenizer, prompt, config):
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    yield tokenizer.decode(ids)[len(shown) :]
