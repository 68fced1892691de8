"""THE DESK: all visitors' texts are written by one thread, a token of each in turn, in the order in which they came.

A visitor has one request at a time: a new one ends the one before, takes its room and goes to the end of the queue, so
nobody waits behind a visitor who asks often.
Whatever reads a model for the page (`compute`) runs in the same thread, because the models' hooks belong to whoever is
reading.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanokimi.errors import UserError
from nanokimi.generation.text import Piece
from nanokimi.play.asked import Asked, Limits, request_for
from nanokimi.play.models import Player
from nanokimi.serve.requests import Asked as Ordered
from nanokimi.serve.requests import Refused
from nanokimi.serve.worker import Job, Worker

WAITING, WRITING, DONE, STOPPED, FAILED = "waiting", "writing", "done", "stopped", "failed"


@dataclass
class Text(Job):
    """One model's text for one visitor, as far as it is written."""

    number: int = 0
    """Its number in the queue."""
    pieces: list[str] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    """Computing time of this text alone, without the turns of others."""
    decoding_seconds: float = 0.0
    """The part of it after the first token, which needs the whole prompt to be read."""
    cache_bytes: int = 0
    reason: str | None = None
    ended: bool = False
    error: str | None = None

    def advance(self) -> bool:
        """One more token, on the clock."""
        begun = time.perf_counter()
        goes_on = super().advance()
        spent = time.perf_counter() - begun
        self.seconds += spent
        self.decoding_seconds += spent if self.tokens else 0.0
        writing = self.writings[0]
        self.tokens, self.cache_bytes = len(writing.written), writing.cache_bytes
        return goes_on

    def take(self, piece: Piece | Refused | None) -> None:
        """What the worker tells."""
        if isinstance(piece, Piece):
            self.pieces.append(piece.text)
            self.reason = piece.finish_reason or self.reason
            return
        if piece is not None:
            self.error = str(UserError(str(piece)))
        self.ended = True

    @property
    def text(self) -> str:
        """What is written so far."""
        return "".join(self.pieces)

    @property
    def state(self) -> str:
        """One of WAITING, WRITING, DONE, STOPPED and FAILED."""
        if self.error is not None:
            return FAILED
        if self.reason is not None:
            return DONE
        if self.cancelled:
            return STOPPED
        return WRITING if self.writings else WAITING

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of this text's own computing; None before the second token."""
        return (self.tokens - 1) / self.decoding_seconds if self.tokens > 1 else None


@dataclass
class Task:
    """Something that a tab wants computed while no model writes."""

    function: Callable[[], Any]
    number: int = 0
    cancelled: bool = False
    result: Any = None
    ended: bool = False
    error: str | None = None

    def advance(self) -> bool:
        """Compute it, at once."""
        self.result = self.function()
        return False

    def tell(self, refused: Refused | None) -> None:
        """How it ended."""
        if refused is not None:
            self.error = str(UserError(str(refused)))
        self.ended = True


class Desk:
    """The one place where models compute for the page."""

    def __init__(
        self,
        players: dict[str, Player],
        limits: Limits,
        on_fault: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.players, self.limits = players, limits
        self.worker = Worker(limits.at_once, limits.queue, on_fault)
        self.of_session: dict[str, list[Text | Task]] = {}
        self.worker.thread.start()

    def write(self, session: str, players: list[Player], asked: Asked) -> list[Text]:
        """Let models continue a prompt. What the same visitor had asked for before is stopped.

        Raises UserError for a prompt that none of them can encode, and if too many visitors are waiting. Where some can
        encode it, the others' texts are FAILED from the start.
        """
        texts = [self._text(player, asked) for player in players]
        errors = [text.error for text in texts if text.error is not None]
        if len(errors) == len(texts):
            raise UserError(errors[0])
        self._enter(session, [text for text in texts if text.error is None])
        return texts

    def compute(self, session: str | None, function: Callable[[], Any]) -> Task:
        """Let `function` run in the thread of the models, in turn; None: for no visitor.

        Raises UserError if too many are waiting.
        """
        task = Task(function)
        self._enter(session, [task])
        return task

    def stop(self, session: str) -> None:
        """End what a visitor has asked for."""
        for work in self.of_session.pop(session, []):
            work.cancelled = True

    def ahead(self, work: Text | Task) -> int:
        """How many requests are before this one in the queue."""
        return self.worker.ahead(work.number)

    def close(self) -> None:
        """End the thread."""
        self.worker.stop()

    def _text(self, player: Player, asked: Asked) -> Text:
        try:
            request = request_for(player, asked)
        except UserError as error:
            order = Ordered((asked.prompt,), (), 1, (), True, False, False)
            return Text(player.served, order, lambda _: None, ended=True, error=str(error))
        order = Ordered((asked.prompt,), (request,), 1, (), True, False, False)
        text = Text(player.served, order, lambda _: None)
        text.tell = text.take
        return text

    def _enter(self, session: str | None, works: Sequence[Text | Task]) -> None:
        """Put works in the queue in the place of what the visitor had asked for, which goes on if they are refused."""
        before = [] if session is None else self.of_session.get(session, [])
        try:
            numbers = self.worker.submit(works, instead_of=before)
        except Refused:
            raise UserError(
                f"{self.worker.present} texts are being written or wait here already: try again in a moment."
            ) from None
        for work, number in zip(works, numbers, strict=True):
            work.number = number
        if session is not None:
            self.of_session[session] = list(works)

    def leave(self, session: str, works: list[Text] | list[Task]) -> None:
        """Forget what has ended, or whose visitor has gone."""
        for work in works:
            work.cancelled = True
        if self.of_session.get(session, [])[:1] == works[:1]:
            self.of_session.pop(session, None)
