"""Signals that end a run: each asks once, what was ignored stays so, and a lost terminal is no error."""

from __future__ import annotations

import io
import os
import pty
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from nanokimi.compare import run
from nanokimi.config.files import load_config
from nanokimi.runtime.display import Display
from nanokimi.runtime.interrupts import STOPPING, Interrupted, leave_lost_terminal, on_first_signal


def test_the_signals_are_those_of_a_user_a_system_a_terminal_and_a_batch_system() -> None:
    assert set(STOPPING) == {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}


@pytest.mark.parametrize("number", STOPPING)
def test_each_asks_once_and_is_then_as_it_was(number: signal.Signals) -> None:
    before, asked = signal.getsignal(number), []
    with on_first_signal(asked.append):
        signal.raise_signal(number)
        assert asked == [number]
        assert signal.getsignal(number) == before, "a second one stops at once"
    assert signal.getsignal(number) == before
    assert Interrupted(number, "").exit_status == 128 + number


@pytest.mark.parametrize("number", STOPPING)
def test_one_that_was_ignored_stays_ignored(number: signal.Signals) -> None:
    """As `nohup` does with SIGHUP, and a shell with SIGINT for what runs in the background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        asked: list[int] = []
        with on_first_signal(asked.append):
            signal.raise_signal(number)
        assert asked == [] and signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("work", ["score_baselines", "build_report"])
def test_a_comparison_says_how_to_go_on_also_where_nothing_trains(
    work: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "score_baselines", lambda *_: {})
    monkeypatch.setattr(run, work, lambda *_: signal.raise_signal(signal.SIGTERM))
    advice = f"continue with: nanokimi compare --resume --out {tmp_path}"
    with on_first_signal(lambda _: None), pytest.raises(Interrupted, match=advice):
        run.train_and_report(load_config("smoke"), {}, None, tmp_path, resume=True, allow_changes=False)


@contextmanager
def lost_terminal() -> Iterator[int]:
    """Standard error is a terminal that has been closed. Yields its descriptor."""
    ours, theirs = pty.openpty()
    kept = os.dup(2)
    os.dup2(theirs, 2)
    os.close(theirs)
    os.close(ours)
    try:
        yield 2
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def test_what_is_written_to_a_lost_terminal_goes_nowhere() -> None:
    with lost_terminal() as descriptor:
        with pytest.raises(OSError):
            os.write(descriptor, b"x")
        leave_lost_terminal()
        assert os.write(descriptor, b"x") == 1


@pytest.mark.parametrize("live", [True, False])
def test_progress_on_a_lost_terminal_does_not_end_the_run(live: bool) -> None:
    with lost_terminal() as descriptor, open(descriptor, "w", closefd=False) as stream:
        console = Console(file=stream, force_terminal=live)
        with Display(["NanoKimi"], 8, console) as display:
            display.phase("NanoKimi", "auditing")
            display.note("NanoKimi", "a line")


def test_another_error_of_a_stream_is_raised() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    display = Display(["NanoKimi"], 8, Console(file=Full()))
    with pytest.raises(OSError, match="No space"):
        display.note("NanoKimi", "a line")
