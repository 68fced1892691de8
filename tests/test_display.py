"""What one sees while models train: panels that do not jump on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from nanokimi.cli import verbs
from nanokimi.compare.summary import summary_table
from nanokimi.config import RunConfig
from nanokimi.runtime.display import ASCII_LEVELS, PANEL_HEIGHT, Display, sparkline
from nanokimi.runtime.progress import progress_console
from nanokimi.train import run as training


def console(terminal: bool, width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def shown(display: Display) -> str:
    with display.console.capture() as capture:
        display.console.print(display.panels())
    return capture.get()


def step(number: int, loss: float) -> dict[str, object]:
    return {"kind": "train", "step": number, "loss": loss, "step_ms": 20.0, "memory_bytes": 5e8}


def test_panels_keep_their_height_and_name_the_phase() -> None:
    display = Display(["NanoKimi", "NanoGPT"], 1000, console(True))
    seen = [shown(display)]
    display.phase("NanoKimi", "evaluating", 3, 12)
    seen.append(shown(display))
    assert "evaluating 3 of 12" in seen[-1] and "loading" in seen[-1] and "?" not in seen[-1]
    for number in range(1, 60):
        display.show("NanoKimi", step(number, 5.0 - 0.05 * number), 60.0)
    display.show("NanoKimi", {"kind": "sample", "step": 59, "prompt": "Once", "text": " upon" * 99}, 60.0)
    display.show("NanoKimi", {"kind": "eval", "step": 59, "val_loss": 2.5}, 60.0)
    seen.append(shown(display))
    assert (
        "59 of 60" in seen[-1] and "2.5000" in seen[-1] and "Once upon" in seen[-1] and "20.0 ms" in seen[-1]
    )
    assert chr(0x2588) in seen[-1] and chr(0x2581) in seen[-1], "the curve, from its highest to its lowest"
    display.phase("NanoKimi", "auditing", 100, 400)
    seen.append(shown(display))
    assert "auditing 100 of 400" in seen[-1]
    assert {text.count("\n") for text in seen} == {PANEL_HEIGHT}


@pytest.mark.parametrize("width", [80, 140])
def test_three_panels_fit_the_terminal_and_show_no_half_of_a_number(width: int) -> None:
    display = Display(["NanoKimi", "NanoGPT with Muon", "NanoGPT"], 1000, console(True, width))
    for name in display.arms:
        display.show(name, step(1, 5.0), 60.0)
        display.show(name, {"kind": "sample", "step": 59, "prompt": "Once", "text": " upon a time" * 9}, 60.0)
        display.phase(name, "auditing", 100, 400)
    text = shown(display)
    assert max(map(len, text.splitlines())) <= width and text.count("\n") == PANEL_HEIGHT
    assert ("auditing 100 of 400" in text) == (width == 140) and "auditing" in text
    assert "a time" in text and "\u2026" not in text


def test_plain_output_is_a_line_for_each_event() -> None:
    display = Display(["NanoKimi"], 1000, console(False))
    with display:
        for done in range(5):
            display.phase("NanoKimi", "evaluating", done, 5)
        display.show("NanoKimi", {"kind": "eval", "step": 0, "val_loss": 7.0}, 60.0)
        display.show("NanoKimi", step(1, 6.9), 60.0)
        for done in range(5):
            display.phase("NanoKimi", "auditing", done, 5)
        display.phase("NanoKimi", "done")
    assert isinstance(display.console.file, io.StringIO)
    lines = display.console.file.getvalue().splitlines()
    assert lines == ["NanoKimi: step 0 of 60, val loss 7.0000", "NanoKimi: auditing", "NanoKimi: done"]


def test_a_sparkline_by_hand() -> None:
    assert sparkline([0.0, 1.0, 2.0, 7.0], 4, ASCII_LEVELS) == "_.-#"
    assert sparkline([4.0, 4.0, 0.0, 0.0], 2, ASCII_LEVELS) == "#_"
    assert sparkline([1.0, 1.0, float("nan"), float("inf")], 9, ASCII_LEVELS) == "__"
    assert sparkline([], 9) == ""


def test_a_run_tells_each_phase_with_its_amount(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    def phase(self: Display, name: str, phase: str, done: int = 0, amount: int = 0) -> None:
        told.setdefault(phase, []).append((done, amount))

    monkeypatch.setattr(Display, "phase", phase)
    result = training.train_alone(tiny_config(max_steps=2, eval_every=2), tmp_path / "run")
    assert list(told) == [
        "evaluating",
        "writing samples",
        "scoring the test text",
        "measuring speed",
        "auditing",
    ]
    for name in ("evaluating", "scoring the test text", "writing samples"):
        amount = told[name][0][1]
        assert [one for one in told[name]][:amount] == [(i, amount) for i in range(amount)], name
    made, planned = result["audit"]["passes"], told["auditing"][0][1]
    assert told["auditing"][: planned + 1] == [(i, planned) for i in range(planned + 1)]
    assert all(one == (planned, planned) for one in told["auditing"][planned + 1 :])
    assert planned <= made < planned + 20, (
        "the plan knew every pass, but for those that repeat a movement in float64"
    )


def test_final_text_breaks_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Open: /some/where/very-long-folder-name/report.html   Try: nanokimi sample /some/where"
    assert verbs.fitted(text) == text, "not a terminal: as it is"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    assert verbs.fitted(text).split("\n") == text.split("   ")
    said = "NanoKimi is not distinguishable from NanoGPT with Muon: no winner. " * 3
    assert verbs.fitted(said).split() == said.split() and max(map(len, verbs.fitted(said).split("\n"))) <= 60


def test_the_table_of_a_narrow_terminal_puts_arms_below_each_other() -> None:
    arm = {"name": "NanoKimi", "test_loss": 1.0, "deviation": 0.1, "test_bits_per_byte": 1.0, "val_loss": 1.0}
    arm |= {"params_active": 1, "params_total": 2, "tokens": 3, "train_seconds": 1.0, "ms_per_step": 1.0}
    arm |= {"peak_memory_bytes": 1e6, "decode_ms_per_token": None, "leaking": None}
    arms = [arm, {**arm, "name": "NanoGPT"}]
    assert summary_table(arms, 200) == summary_table(arms)
    narrow = summary_table(arms, 60)
    assert max(map(len, narrow.split("\n"))) <= 60 < max(map(len, summary_table(arms).split("\n")))
    assert "\nNanoGPT\n  test loss (nats per token): 1.0000 +- 0.1000\n" in narrow


def test_a_pipe_is_no_terminal_whatever_colours_are_wished_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook wishes for colours in what its cells start, and was filled with thousands of redrawn bars."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)
    assert Console(stderr=True).is_terminal, "this is what rich does by itself"
    assert not progress_console().is_terminal and not Display(["NanoKimi"], 8).console.is_terminal
    monkeypatch.setattr(sys, "stderr", None)  # as after `nanokimi compare 2>&-`
    progress_console().print("nobody reads this")
    assert not progress_console().is_terminal
