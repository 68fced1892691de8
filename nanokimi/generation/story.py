"""Stories as text, with a run's sampling settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from nanokimi.config import RunConfig
from nanokimi.data.tokenizers.opening import opening_ids
from nanokimi.data.tokenizers.own import Tokenizer
from nanokimi.generation.engine import generate
from nanokimi.generation.sampling import Sampling
from nanokimi.generation.text import TextSettings, TextStream
from nanokimi.model.build import LanguageModel


def sampling_of(config: RunConfig) -> Sampling:
    """How a run's configuration says that tokens are chosen."""
    sample = config.sample
    return Sampling(
        temperature=sample.temperature,
        top_k=sample.top_k,
        top_p=sample.top_p,
        min_p=sample.min_p,
        repetition_penalty=sample.repetition_penalty,
    )


def text_settings(config: RunConfig) -> TextSettings:
    """The settings of a run's stories."""
    sample = config.sample
    return TextSettings(max_new_tokens=sample.max_new_tokens, sampling=sampling_of(config), seed=config.seed)


def story_ids(model: LanguageModel, tokenizer: Tokenizer, prompt: str, config: RunConfig) -> Iterator[int]:
    """Token ids that continue `prompt`, the beginning of a document."""
    return generate(
        model,
        opening_ids(tokenizer, prompt),
        config.sample.max_new_tokens,
        **asdict(sampling_of(config)),
        seed=config.seed,
        context_length=config.train.context_length,
        stop_id=tokenizer.end_of_text_id,
    )


def stream_story(model: LanguageModel, tokenizer: Tokenizer, prompt: str, config: RunConfig) -> Iterator[str]:
    """Text that continues `prompt`, in pieces."""
    stream = TextStream(tokenizer)
    for token in story_ids(model, tokenizer, prompt, config):
        if piece := stream.push(token):
            yield piece
    yield stream.finish()
