"""The thread that computes: requests wait in a queue, and those in work advance by one token in turns.

All models share the one thread, because their products would fight for the same cores. A request whose client has gone
is dropped at its next token, or leaves the queue, and does not count among those that there is room for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from nanokimi.data.tokenizers.own import Tokenizer
from nanokimi.errors import TrainingError, UserError
from nanokimi.generation.engine import ENDED, Engine, Writing
from nanokimi.generation.text import Piece, TextStream
from nanokimi.runtime.device import is_out_of_memory
from nanokimi.runtime.text import one_line
from nanokimi.serve.requests import Asked, Refused


@dataclass(frozen=True)
class Served:
    """A model that is served."""

    name: str
    engine: Engine
    tokenizer: Tokenizer
    created: int
    """Unix time of its weights."""


class Work(Protocol):
    """What waits in the queue."""

    cancelled: bool

    @property
    def tell(self) -> Callable[[Refused | None], None]:
        """Gets None at the end, or the reason why there will be no more; called in any thread."""

    def advance(self) -> bool:
        """Compute a little, a token say; whether there is more to do."""


@dataclass
class Job:
    """A request in the queue or in work. `tell` gets its pieces, then None, or a Refused; from any thread."""

    served: Served
    asked: Asked
    tell: Callable[[Piece | Refused | None], None]
    cancelled: bool = False
    writings: list[Writing] = field(default_factory=list)
    streams: list[TextStream] = field(default_factory=list)

    def begin(self) -> None:
        """Make the sequences."""
        self.writings = [self.served.engine.start(request) for request in self.asked.requests]
        self.streams = [TextStream(self.served.tokenizer, self.asked.stop) for _ in self.writings]
        for row, writing in enumerate(self.writings):
            if writing.finish_reason is not None:  # no token was asked for
                self.tell(Piece(row, "", writing.finish_reason))

    def advance(self) -> bool:
        """One more token for each sequence; whether any goes on."""
        if not self.writings:
            self.begin()
        for row, (writing, stream) in enumerate(zip(self.writings, self.streams, strict=True)):
            if writing.finish_reason is not None:
                continue
            token = self.served.engine.step(writing)
            text = "" if token is None else stream.push(token)
            if stream.stopped:
                writing.finish_reason = ENDED
            if writing.finish_reason is not None:
                text += stream.finish()
                writing.leave_cache(0 if writing.cache is None else writing.cache.bytes_held)
            if text or writing.finish_reason is not None:
                self.tell(Piece(row, text, writing.finish_reason))
        return any(writing.finish_reason is None for writing in self.writings)


class Worker:
    """Up to `at_once` requests are in work and `waiting` more in the queue; further ones are refused.

    `on_fault` gets what nobody has foreseen; the client is only told its name.
    """

    def __init__(
        self, at_once: int, waiting: int, on_fault: Callable[[BaseException], None] | None = None
    ) -> None:
        self.at_once, self.most, self.on_fault = at_once, at_once + waiting, on_fault
        self.changed, self.over = threading.Condition(), False
        self.inside: list[Work] = []
        """All requests that have not ended, also those whose client has gone."""
        self.waiting: list[tuple[int, Work]] = []
        """The queue: each request with its number, in the order in which they came."""
        self.given = 0
        """How many requests have come so far."""
        self.threads = torch.get_num_threads()
        self.thread = threading.Thread(target=self._work, name="nanokimi writes", daemon=True)

    @property
    def present(self) -> int:
        """How many requests are in work or wait."""
        return len(self.inside)

    def submit(self, jobs: Sequence[Work], instead_of: Sequence[Work] = ()) -> list[int]:
        """Put requests at the end of the queue, all or none; returns their numbers, counted from 1.

        Those in `instead_of` are cancelled. Raises Refused (429), and cancels none, if there is no room even so.
        """
        ending = {id(job) for job in instead_of}
        with self.changed:
            staying = sum(not job.cancelled and id(job) not in ending for job in self.inside)
            if staying + len(jobs) > self.most:
                raise Refused(429, f"{self.present} requests are waiting: try again later", code="queue_full")
            for job in instead_of:
                job.cancelled = True
            gone = [job for _, job in self.waiting if job.cancelled]
            self.waiting = [(number, job) for number, job in self.waiting if not job.cancelled]
            first = self.given + 1
            self.given += len(jobs)
            numbers = list(range(first, self.given + 1))
            self.waiting += zip(numbers, jobs, strict=True)
            self.inside += jobs
            self.changed.notify()
        for job in gone:  # now, or who asks often would fill the queue during one long computation
            self._leave(job)
            job.tell(None)
        return numbers

    def ahead(self, number: int) -> int:
        """How many requests are in the queue that came before the one of this number."""
        with self.changed:
            return sum(other < number for other, _ in self.waiting)

    def stop(self) -> None:
        """End the thread; what is in work is dropped."""
        with self.changed:
            self.over = True
            self.changed.notify()
        self.thread.join(5)

    def _work(self) -> None:
        torch.set_num_threads(self.threads)  # OpenMP's number is that of each thread
        active: list[Work] = []
        while True:
            with self.changed:
                while not (active or self.waiting or self.over):
                    self.changed.wait()
                if self.over:
                    return
                gone = self._next(active)
            for job in gone:
                self._goes_on(job)
            active = [job for job in active if self._goes_on(job)]

    def _next(self, active: list[Work]) -> list[Work]:
        """Fill `active` from the queue; returns those whose client no longer waits, which keep no place in it."""
        gone: list[Work] = []
        waiting: list[tuple[int, Work]] = []
        for number, job in self.waiting:
            if job.cancelled:
                gone.append(job)
            elif len(active) < self.at_once:
                active.append(job)
            else:
                waiting.append((number, job))
        self.waiting = waiting
        return gone

    def _goes_on(self, job: Work) -> bool:
        """One step of a job. Whatever fails is told to its client, and the thread lives on."""
        try:
            if not job.cancelled and job.advance():
                return True
            job.tell(None)
        except (UserError, TrainingError, ValueError) as error:
            job.tell(Refused(500, one_line(error)))
        except Exception as error:
            full = isinstance(error, MemoryError) or is_out_of_memory(error)
            reason = "out of memory: ask for fewer texts" if full else f"unexpected {type(error).__name__}"
            if self.on_fault is not None and not full:
                self.on_fault(error)
            job.tell(Refused(500, reason))
        self._leave(job)
        return False

    def _leave(self, job: Work) -> None:
        with self.changed:
            self.inside = [one for one in self.inside if one is not job]
