"""What a person watches while models train: a live table on a terminal, plain lines elsewhere. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

RECENT = 50


@dataclass
class _Progress:
    step: int = 0
    total: float | None = None
    losses: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    val_loss: float | None = None
    memory_bytes: int = 0
    tokens_per_step: int = 0
    story: str = ""
    state: str = "waiting"

    def seconds_left(self) -> float | None:
        """Training time left at the recent speed."""
        if self.total is None or not self.step_ms:
            return None
        return max(self.total - self.step, 0) * median(self.step_ms) / 1e3


class Display:
    """Shows the records of one or more arms side by side.

    Args:
        names: the arms, in order.
        tokens_per_step: of every arm.
        console: where to write; standard error, so that standard output stays clean for results.
    """

    def __init__(self, names: list[str], tokens_per_step: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.arms = {name: _Progress(tokens_per_step=tokens_per_step) for name in names}
        self.live = Live(
            console=self.console, refresh_per_second=4, transient=False, get_renderable=self._render
        )

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def log(self, name: str, state: str) -> None:
        """What an arm is doing outside its training steps."""
        self.arms[name].state = state
        if not self.console.is_terminal and state not in ("training", "waiting"):
            self.console.print(f"{name}: {state}", highlight=False)

    def note(self, name: str, line: str) -> None:
        """Something that must be read, such as a checkpoint found damaged."""
        self.console.print(f"{name}: {line}", highlight=False, markup=False, soft_wrap=True)

    def show(self, name: str, record: dict[str, Any], total_steps: float | None) -> None:
        """Take in one record of an arm."""
        arm = self.arms[name]
        arm.step, arm.total = record["step"], total_steps
        if record["kind"] == "train":
            arm.state = "training"
            arm.losses = [*arm.losses[-RECENT:], record["loss"]]
            arm.step_ms = [*arm.step_ms[-RECENT:], record["step_ms"]]
            arm.memory_bytes = record["memory_bytes"]
        elif record["kind"] == "eval":
            arm.val_loss = record["val_loss"]
            if not self.console.is_terminal:
                self.console.print(f"{name}: {self._line(arm)}", highlight=False, soft_wrap=True)
        elif record["kind"] == "event":
            self.note(name, record["detail"])
        elif record["kind"] == "compiling":
            self.note(name, "compiling the training step, which may take a minute")
        elif record["kind"] == "compiled":
            self.note(name, f"compiled in {record['seconds']:.0f} s")
        elif record["kind"] == "sample":
            story = record["prompt"] + record["text"]
            # Bytes may spell terminal commands.
            arm.story = "".join(c if c.isprintable() else " " for c in story)

    def _line(self, arm: _Progress) -> str:
        parts = [f"step {arm.step:,}" + (f" of {arm.total:,.0f}" if arm.total and arm.total < 1e9 else "")]
        parts += [f"val loss {arm.val_loss:.4f}"] if arm.val_loss is not None else []
        if arm.losses:
            speed = arm.tokens_per_step / median(arm.step_ms) * 1e3
            parts += [
                f"train loss {sum(arm.losses) / len(arm.losses):.4f}",
                f"{median(arm.step_ms):.1f} ms/step",
            ]
            parts += [f"{speed:,.0f} tokens/s", f"{arm.memory_bytes / 1e6:,.0f} MB"]
        left = arm.seconds_left()
        return ", ".join(parts + ([f"{_clock(left)} left"] if left else []))

    def _render(self) -> Table:
        grid = Table.grid(expand=True, padding=(0, 1))
        for _ in self.arms:
            grid.add_column(ratio=1)
        grid.add_row(*(Panel(self._table(arm), title=escape(name)) for name, arm in self.arms.items()))
        return grid

    def _table(self, arm: _Progress) -> Table:
        table = Table.grid(padding=(0, 1))
        table.add_column(justify="right", style="dim")
        table.add_column()
        total = f"{arm.total:,.0f}" if arm.total and arm.total < 1e9 else "?"
        table.add_row("step", f"{arm.step:,} of {total} ({arm.state})")
        table.add_row("", ProgressBar(total=arm.total or 1, completed=arm.step, width=30))
        if arm.losses:
            table.add_row("train loss", f"{sum(arm.losses) / len(arm.losses):.4f}")
            ms = median(arm.step_ms)
            table.add_row("speed", f"{arm.tokens_per_step / ms * 1e3:,.0f} tokens/s, {ms:.1f} ms/step")
            table.add_row("memory", f"{arm.memory_bytes / 1e6:,.0f} MB")
        if arm.val_loss is not None:
            table.add_row("val loss", f"{arm.val_loss:.4f}")
        left = arm.seconds_left()
        if left is not None:
            table.add_row("time left", f"{_clock(left)} of training")
        table.add_row("story", escape(arm.story[:240]))
        return table


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
