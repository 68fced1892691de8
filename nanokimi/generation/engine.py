"""THE ENGINE of every command that writes: read the prompt at once (prefill), then one token at a time (decode).

Several sequences are written in rounds of one token each. On a CPU each is computed by itself, so a sequence gets the
same text alone and in a batch, bit for bit. An accelerator computes them together: rows of one batch stand at the same
position of their windows, and a row whose prompt is longer than that reads its prompt on while others already write, so
no row is padded. There the rounding of a row depends on the others, and a near-tie may fall the other way.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from typing import cast

import torch

from nanokimi.config.checks import require_sampling
from nanokimi.errors import UserError
from nanokimi.generation.sampling import Sampling, sample_token
from nanokimi.kernels.decode import DecodeStep, decode_step, decoding_model
from nanokimi.model.build import LanguageModel
from nanokimi.model.cache import Cache

ENDED, FULL, STOPPED = "stop", "length", "cancelled"
"""Why a sequence has ended: a token or text that ends it, its number of tokens, or the reader."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A sequence to write."""

    prompt_ids: Sequence[int]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    stop_id: int | None = None
    """The token, such as end-of-text, that ends the sequence and is not part of it."""


class Writing:
    """A sequence in progress: what the model sees of it, what was written, and why it ended."""

    def __init__(self, request: Request, limit: int) -> None:
        if len(request.prompt_ids) == 0:
            raise UserError("the prompt is empty: there is nothing to continue")
        self.request = request
        self.window = [int(token) for token in request.prompt_ids[-limit:]]
        self.seen = set(map(int, request.prompt_ids)) if request.sampling.repetition_penalty != 1 else set()
        self.choice = asdict(request.sampling)
        self.generator = torch.Generator().manual_seed(request.seed)
        self.written: list[int] = []
        self.cache: Cache | None = None
        self._cache_bytes = 0
        self.finish_reason: str | None = None if request.max_new_tokens > 0 else FULL

    @property
    def cache_bytes(self) -> int:
        """The most bytes that this sequence has held in the cache so far."""
        return max(self._cache_bytes, 0 if self.cache is None else self.cache.bytes_held)

    def leave_cache(self, held: int) -> None:
        """Give up the cache, in which this sequence held so many bytes."""
        self._cache_bytes, self.cache = max(self._cache_bytes, held), None

    def take(self, logits_W: torch.Tensor) -> int | None:
        """Choose the next token and append it; None if it ends the sequence."""
        token = sample_token(logits_W, self.generator, **self.choice, seen=self.seen)
        if token == self.request.stop_id:
            self.finish_reason = ENDED
            return None
        self.window.append(token)
        self.written.append(token)
        if self.request.sampling.repetition_penalty != 1:
            self.seen.add(token)
        if len(self.written) >= self.request.max_new_tokens:
            self.finish_reason = FULL
        return token

    def make_room(self, limit: int) -> None:
        """If the window is beyond `limit`, keep only the newer half of `limit`: the cache is then of no use."""
        if len(self.window) <= limit:
            return
        self.window = self.window[-max(limit // 2, 1) :]
        self.leave_cache(0 if self.cache is None else self.cache.bytes_held)


Round = list[tuple[Writing, int]]
"""The sequences that got a token in a round, and the tokens."""


class Engine:
    """Writes with one model. Its weights must not change meanwhile.

    The model sees at most `context_length` tokens (None: as many as it has positions for). When the window is full, its
    newer half is kept and read again. Positions in the window have then changed, so the cache would not be valid. The
    uncached path moves the window in the same way, so both give the same tokens.

    Args:
        together: compute the sequences as one batch. None: on an accelerator.

    Raises UserError if `context_length` is more than the model has positions for.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        context_length: int | None = None,
        use_cache: bool = True,
        together: bool | None = None,
    ) -> None:
        positions = model.config.max_position_embeddings
        assert positions is not None, "resolve() fills this in"
        self.limit = positions if context_length is None else context_length
        if not 1 <= self.limit <= positions:
            raise UserError(f"context_length is {self.limit}, the model has positions for 1 to {positions}")
        self.use_cache = use_cache and getattr(model, "can_cache", True)
        # Asked for a batch, the device computes it; else a small model on a GPU decodes as a copy on the CPU.
        copies = self.use_cache and not together
        self.model = cast(LanguageModel, decoding_model(model)) if copies else model
        self.device = next(self.model.parameters()).device
        self.together = self.device.type != "cpu" if together is None else together
        self._decode: DecodeStep | None = None

    def start(self, request: Request) -> Writing:
        """A sequence for `rounds` or `step`. Raises UserError for an empty prompt."""
        return Writing(request, self.limit)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The model in evaluation mode; its mode is restored afterwards."""
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    @torch.inference_mode()
    def rounds(self, writings: Sequence[Writing]) -> Generator[Round]:
        """Write until every sequence has ended, a token for each at a time.

        Between rounds the reader may end a sequence by setting its `finish_reason`.
        """
        with self.writing():
            if self.together and len(writings) > 1:
                yield from self._rounds_together(writings)
                return
            while active := [writing for writing in writings if writing.finish_reason is None]:
                yield [(w, token) for w in active if (token := self._next(w)) is not None]

    @torch.inference_mode()
    def step(self, writing: Writing) -> int | None:
        """The next token of one sequence that has not ended; None if it ends it. The model must be in evaluation."""
        return self._next(writing)

    def _next(self, writing: Writing) -> int | None:
        writing.make_room(self.limit)
        if writing.cache is not None:
            if self._decode is None:
                self._decode = decode_step(self.model)
            logits_W = self._decode(writing.window[-1], writing.cache)
        else:
            writing.cache = self._new_cache()
            logits_W = self._read([writing.window], writing.cache)[0]
        token = writing.take(logits_W)
        if writing.finish_reason is not None and writing.cache is not None:
            writing.leave_cache(writing.cache.bytes_held)
        return token

    def _new_cache(self) -> Cache | None:
        return Cache(self.model.config.num_hidden_layers, self.limit) if self.use_cache else None

    def _read(self, ids: list[list[int]], cache: Cache | None) -> torch.Tensor:
        """The logits (B, W) after the last of the ids (B, T)."""
        return self.model(torch.tensor(ids, device=self.device), cache).logits_BTW[:, -1]

    def _rounds_together(self, writings: Sequence[Writing]) -> Iterator[Round]:
        """Rows of one batch, all at the same position. They come to the end of their windows at the same time."""
        active = [writing for writing in writings if writing.finish_reason is None]
        while active:
            for writing in active:
                writing.make_room(self.limit)
            position = min(len(writing.window) for writing in active)
            cache = self._new_cache()
            logits_BW = self._read([writing.window[:position] for writing in active], cache)
            while True:
                logits_BW = logits_BW.cpu()  # once for all rows
                found = []
                for writing, logits_W in zip(active, logits_BW, strict=True):
                    if len(writing.window) == position and (token := writing.take(logits_W)) is not None:
                        found.append((writing, token))
                yield found
                rows = [row for row, writing in enumerate(active) if writing.finish_reason is None]
                if len(rows) < len(active) or position == self.limit:
                    for writing in active:
                        writing.leave_cache(0 if cache is None else cache.bytes_held // len(active))
                    active = [active[row] for row in rows]
                    if cache is not None and active:
                        cache.keep_rows(torch.tensor(rows, device=self.device))
                if not active or position == self.limit:
                    break
                begin = 0 if cache is None else position
                position += 1
                logits_BW = self._read([writing.window[begin:position] for writing in active], cache)


def generate(
    model: LanguageModel,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    use_cache: bool = True,
    context_length: int | None = None,
    stop_id: int | None = None,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` ids that continue the prompt, until `stop_id` (end-of-text), which is not yielded.

    For what the words mean see `Sampling`, and for what happens at the end of the context see `Engine`.

    Raises:
        UserError: the prompt is empty, `context_length` is more than the model has positions for, or no token can be
            chosen so, as with a negative temperature.
    """
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    require_sampling(sampling)
    engine = Engine(model, context_length=context_length, use_cache=use_cache)
    request = Request(
        prompt_ids=prompt_ids, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, stop_id=stop_id
    )
    with closing(engine.rounds([engine.start(request)])) as rounds:
        for found in rounds:
            for _, token in found:
                yield token
