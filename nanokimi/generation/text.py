"""Texts that a model writes: tokens become text as they come, stop strings end it, and batches keep their order."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

from nanokimi.config.checks import require, require_sampling
from nanokimi.data.tokenizers.opening import opening_ids
from nanokimi.data.tokenizers.own import Tokenizer
from nanokimi.errors import UserError
from nanokimi.generation.engine import ENDED, FULL, Engine, Request, Writing
from nanokimi.generation.sampling import Sampling
from nanokimi.model.build import LanguageModel
from nanokimi.runtime.device import is_out_of_memory

UNFINISHED = "\ufffd"
"""What a tokenizer decodes a part of a character to."""


class Piece(NamedTuple):
    """The next piece of one text of a batch; the last one has the reason why the text ended."""

    row: int
    text: str
    finish_reason: str | None = None


@dataclass(frozen=True)
class Completion:
    """A text that a model wrote after a prompt."""

    prompt: str
    text: str
    """What follows the prompt, without the stop string that ended it."""
    finish_reason: str
    """ "stop" (end-of-text or a stop string) or "length" (all tokens were used)."""
    prompt_tokens: int
    """With the end-of-text before a prompt, where the training text is documents."""
    tokens: int
    """Tokens that were written."""
    cache_bytes: int
    """The most bytes that the text held in the cache."""
    seed: int


class TextStream:
    """Turns the tokens of one text into pieces of text, and looks for stop strings.

    A character may take several tokens and a stop string several pieces, so whatever may be the beginning of one is
    held back until more is known.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.ids: list[int] = []
        self.shown = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain after one more token; sets `stopped` if a stop string is complete."""
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids)
        if text.endswith(UNFINISHED):
            return ""
        return self._show(text, whole=False)

    def finish(self) -> str:
        """The rest, after the last token."""
        return "" if self.stopped else self._show(self.tokenizer.decode(self.ids), whole=True)

    def _show(self, text: str, *, whole: bool) -> str:
        begins = [place for stop in self.stop if (place := text.find(stop, self.shown)) >= 0]
        if begins:
            self.stopped = True
            end = min(begins)
        else:
            end = len(text) if whole else len(text) - self._held_back(text)
        piece, self.shown = text[self.shown : end], max(self.shown, end)
        return piece

    def _held_back(self, text: str) -> int:
        """Characters at the end of the text that may be the beginning of a stop string."""
        longest = max(map(len, self.stop), default=1) - 1
        for length in range(min(longest, len(text) - self.shown), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self.stop):
                return length
        return 0


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """What is asked for beside the prompts."""

    max_new_tokens: int = 256
    sampling: Sampling = field(default_factory=lambda: Sampling(top_p=0.95))
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Texts before which a text ends."""
    num_samples: int = 1
    """Texts for each prompt: the first with `seed`, the next with `seed` + 1, and so on."""


def requests_of(tokenizer: Tokenizer, prompts: Sequence[str], settings: TextSettings) -> list[Request]:
    """The requests for `num_samples` texts of each prompt, in order. A prompt begins a document.

    Raises UserError for a prompt that is empty or cannot be encoded, and for an empty stop string.
    """
    require(all(settings.stop), "a stop string is empty: give at least one character, or leave it out")
    require(settings.num_samples >= 1, f"num_samples is {settings.num_samples}: it must be at least 1")
    require(
        settings.max_new_tokens >= 0, f"max_new_tokens is {settings.max_new_tokens}: it must be 0 or more"
    )
    last = settings.seed + settings.num_samples - 1
    require(
        0 <= settings.seed <= last < 2**63, f"seed is {settings.seed}: it must be at least 0 and below 2^63"
    )
    require_sampling(settings.sampling)
    found = []
    for prompt in prompts:
        ids = opening_ids(tokenizer, prompt)
        if not ids:
            raise UserError("the prompt is empty: a story needs at least one character to go on")
        for number in range(settings.num_samples):
            found.append(
                Request(
                    prompt_ids=ids,
                    max_new_tokens=settings.max_new_tokens,
                    sampling=settings.sampling,
                    seed=settings.seed + number,
                    stop_id=tokenizer.end_of_text_id,
                )
            )
    return found


def stream_pieces(
    engine: Engine, tokenizer: Tokenizer, writings: Sequence[Writing], stop: Sequence[str] = ()
) -> Generator[Piece]:
    """The pieces of several texts, as they are written. Raises MemoryError if they do not fit into memory together."""
    try:
        yield from _pieces(engine, tokenizer, writings, stop)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"out of memory while writing {len(writings)} texts: write fewer at once") from None


def _pieces(
    engine: Engine, tokenizer: Tokenizer, writings: Sequence[Writing], stop: Sequence[str]
) -> Generator[Piece]:
    streams = [TextStream(tokenizer, stop) for _ in writings]
    row_of = {id(writing): row for row, writing in enumerate(writings)}
    ended: set[int] = set()
    with closing(engine.rounds(writings)) as rounds:
        for found in rounds:
            for writing, token in found:
                row = row_of[id(writing)]
                piece = streams[row].push(token)
                if streams[row].stopped:
                    writing.finish_reason = ENDED
                if piece:
                    yield Piece(row, piece)
            for row, writing in enumerate(writings):
                if writing.finish_reason is not None and row not in ended:
                    ended.add(row)
                    yield Piece(row, streams[row].finish(), writing.finish_reason)
    for row in range(len(writings)):  # those that asked for no token at all
        if row not in ended:
            yield Piece(row, "", FULL)


def in_order(pieces: Iterator[Piece], rows: int) -> Iterator[Piece]:
    """The pieces of the first text as they come, then those of the second, and so on."""
    waiting: list[list[Piece]] = [[] for _ in range(rows)]
    current = 0
    for piece in pieces:
        waiting[piece.row].append(piece)
        while current < rows and waiting[current]:
            one = waiting[current].pop(0)
            yield one
            current += one.finish_reason is not None


def complete(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: str | Sequence[str],
    settings: TextSettings,
    *,
    context_length: int | None = None,
    together: bool | None = None,
) -> list[Completion]:
    """Continue one or several prompts, all in one batch; `num_samples` completions of each, in order.

    Raises UserError for a prompt that cannot be encoded or is empty; TrainingError if the model has diverged.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    engine = Engine(model, context_length=context_length, together=together)
    requests = requests_of(tokenizer, prompts, settings)
    writings = [engine.start(request) for request in requests]
    texts = [""] * len(writings)
    for piece in stream_pieces(engine, tokenizer, writings, settings.stop):
        texts[piece.row] += piece.text
    return [
        Completion(
            prompt=prompts[row // settings.num_samples],
            text=texts[row],
            finish_reason=writing.finish_reason or FULL,
            prompt_tokens=len(writing.request.prompt_ids),
            tokens=len(writing.written),
            cache_bytes=writing.cache_bytes,
            seed=writing.request.seed,
        )
        for row, writing in enumerate(writings)
    ]
