"""Progress of training: a live panel for each arm on a terminal, plain lines elsewhere. Nothing depends on a model."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean, median
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nanokimi.runtime.interrupts import leave_lost_terminal
from nanokimi.runtime.progress import progress_console
from nanokimi.runtime.text import visible, visible_line

RECENT = 50
POINTS = 4096
"""Losses that are kept for the sparkline, at most; beyond that every second one is dropped."""
PANEL_HEIGHT, STORY_LINES, BAR_WIDTH, LABEL_WIDTH = 16, 3, 24, 10
STORY_CHARACTERS = 240
LEVELS = "".join(chr(0x2581 + i) for i in range(8))
ASCII_LEVELS = "_.-=+*%#"
QUIET = ("waiting", "training", "evaluating", "writing samples")
"""Phases that come again and again, and are no lines where there is no terminal."""
OVER = ("trained", "done")


@dataclass
class _Progress:
    step: int = 0
    total: float | None = None
    losses: list[float] = field(default_factory=list)
    curve: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    val_loss: float | None = None
    memory_bytes: int = 0
    tokens_per_step: int = 0
    story: str = ""
    phase: str = "loading"
    since: float = field(default_factory=time.monotonic)
    done: int = 0
    amount: int = 0

    def seconds_left(self) -> float | None:
        """Training time left at the recent speed."""
        if self.total is None or not self.step_ms:
            return None
        return max(self.total - self.step, 0) * median(self.step_ms) / 1e3

    def enter(self, phase: str, done: int, amount: int) -> bool:
        """Go to a phase; returns whether it is a new one."""
        new = phase != self.phase
        if new:
            self.since = time.monotonic()
        self.phase, self.done, self.amount = phase, done, amount
        return new


class Display:
    """Shows the records of one or more arms side by side.

    Args:
        names: the arms, in order.
        tokens_per_step: of every arm.
        console: where to write. The default is standard error, so that standard output has only results.
    """

    def __init__(self, names: list[str], tokens_per_step: int, console: Console | None = None) -> None:
        self.console = console or progress_console()
        self.is_live = False
        self.arms = {name: _Progress(tokens_per_step=tokens_per_step) for name in names}
        self.live = Live(
            console=self.console, refresh_per_second=4, transient=False, get_renderable=self.panels
        )

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            with without_terminal():
                self.live.start()
                self.is_live = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_live:
            with without_terminal():
                self.live.stop()

    def phase(self, name: str, phase: str, done: int = 0, amount: int = 0) -> None:
        """Show what an arm is doing, and how much of it is done; an amount of 0 is not known."""
        new = self.arms[name].enter(phase, done, amount)
        if new and not self.console.is_terminal and phase not in QUIET:
            self._print(f"{name}: {phase}")

    def note(self, name: str, line: str) -> None:
        """Print a line that must be read, such as that a checkpoint is damaged."""
        self._print(f"{name}: {line}")

    def show(self, name: str, record: dict[str, Any], total_steps: float | None) -> None:
        """Show a record of an arm."""
        arm = self.arms[name]
        arm.step, arm.total = record["step"], total_steps
        if record["kind"] == "train":
            arm.enter("training", 0, 0)
            arm.losses = [*arm.losses[-RECENT:], record["loss"]]
            arm.curve = [*(arm.curve if len(arm.curve) < POINTS else arm.curve[::2]), record["loss"]]
            arm.step_ms = [*arm.step_ms[-RECENT:], record["step_ms"]]
            arm.memory_bytes = record["memory_bytes"]
        elif record["kind"] == "eval":
            arm.val_loss = record["val_loss"]
            if not self.console.is_terminal:
                self._print(f"{name}: {self._line(arm)}")
        elif record["kind"] == "event":
            self.note(name, record["detail"])
        elif record["kind"] == "compiling":
            self.note(name, "compiling the training step, which may take a minute")
        elif record["kind"] == "compiled":
            self.note(name, f"compiled in {record['seconds']:.0f} s")
        elif record["kind"] == "sample":
            story = record["prompt"] + record["text"]
            # Generated bytes could be commands to the terminal.
            arm.story = "".join(c if c.isprintable() else " " for c in story)

    def _print(self, line: str) -> None:
        with without_terminal():
            self.console.print(visible(line), highlight=False, markup=False, soft_wrap=True)

    def _line(self, arm: _Progress) -> str:
        parts = [f"step {arm.step:,}" + (f" of {arm.total:,.0f}" if arm.total and arm.total < 1e9 else "")]
        parts += [f"val loss {arm.val_loss:.4f}"] if arm.val_loss is not None else []
        if arm.losses:
            speed = arm.tokens_per_step / median(arm.step_ms) * 1e3
            parts += [f"train loss {fmean(arm.losses):.4f}", f"{median(arm.step_ms):.1f} ms/step"]
            parts += [f"{speed:,.0f} tokens/s", f"{arm.memory_bytes / 1e6:,.0f} MB"]
        left = arm.seconds_left()
        return ", ".join(parts + ([f"{_clock(left)} left"] if left else []))

    def panels(self) -> Table:
        """A panel for each arm. Their height is always the same, so that nothing jumps."""
        grid = Table.grid(expand=True, padding=(0, 1))
        for _ in self.arms:
            grid.add_column(ratio=1)
        panels = [
            Panel(self._content(arm), title=escape(visible_line(name)), height=PANEL_HEIGHT)
            for name, arm in self.arms.items()
        ]
        grid.add_row(*panels)
        return grid

    def _content(self, arm: _Progress) -> Group:
        story = Text.assemble(("story ", "dim"), arm.story[:STORY_CHARACTERS] or "")
        return Group(self._table(arm), story)  # the panel's height leaves STORY_LINES for it

    def _width_of_values(self) -> int:
        """Columns beside the labels of a panel: its share of the terminal without borders, gaps and labels."""
        return max(self.console.width // len(self.arms) - 6 - LABEL_WIDTH, 4)

    def _table(self, arm: _Progress) -> Table:
        table = Table.grid(padding=(0, 1))
        table.add_column(justify="right", style="dim", no_wrap=True, min_width=LABEL_WIDTH)
        table.add_column(no_wrap=True, overflow="ellipsis")
        width = self._width_of_values()
        bar_width = min(BAR_WIDTH, width)
        table.add_row("now", _phase_text(arm, width))
        total = arm.amount or None  # None: the bar pulses
        bar = ProgressBar(total=total, completed=arm.done, width=bar_width)
        table.add_row("", bar if arm.amount or arm.phase not in (*QUIET, *OVER) else "")
        finite = arm.total is not None and arm.total < 1e9
        table.add_row("step", f"{arm.step:,} of {arm.total:,.0f}" if finite else f"{arm.step:,}")
        table.add_row("", ProgressBar(total=arm.total or 1, completed=arm.step, width=bar_width))
        table.add_row("train loss", f"{fmean(arm.losses):.4f}" if arm.losses else "")
        table.add_row("", self._sparkline(arm.curve, bar_width))
        table.add_row("val loss", "" if arm.val_loss is None else f"{arm.val_loss:.4f}")
        ms = median(arm.step_ms) if arm.step_ms else None
        table.add_row("speed", "" if ms is None else f"{arm.tokens_per_step / ms * 1e3:,.0f} tokens/s")
        table.add_row("", "" if ms is None else f"{ms:.1f} ms per step")
        table.add_row("memory", f"{arm.memory_bytes / 1e6:,.0f} MB" if arm.memory_bytes else "")
        left = arm.seconds_left()
        table.add_row("left", "" if left is None else f"{_clock(left)} of training")
        return table

    def _sparkline(self, values: list[float], width: int) -> str:
        return sparkline(values, width, LEVELS if "utf" in self.console.encoding.lower() else ASCII_LEVELS)


def _phase_text(arm: _Progress, width: int) -> str:
    """What an arm is doing, how much of it is done and for how long it has: as much as fits."""
    amount = f" {arm.done:,} of {arm.amount:,}" if arm.amount else ""
    waited = time.monotonic() - arm.since
    elapsed = f" ({_clock(waited)})" if waited >= 2 and arm.phase not in (*QUIET, *OVER) else ""
    texts = (f"{arm.phase}{more}" for more in (amount + elapsed, amount, elapsed))
    return next((text for text in texts if len(text) <= width), arm.phase)


def sparkline(values: list[float], width: int, levels: str = LEVELS) -> str:
    """A curve as one line of at most `width` characters, each the mean of its share of the values."""
    finite = [value for value in values if abs(value) < float("inf")]
    width = min(width, len(finite))
    edges = [len(finite) * i // width for i in range(width + 1)] if width else []
    means = [fmean(finite[start:end]) for start, end in zip(edges, edges[1:], strict=False)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    top = len(levels) - 1
    return "".join(levels[round(top * (mean - low) / (high - low)) if high > low else 0] for mean in means)


@contextmanager
def without_terminal() -> Iterator[None]:
    """Go on if the terminal is gone: nobody reads what the block writes, and training does not depend on it."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        leave_lost_terminal()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
