"""Pictures are drawn with our settings, whatever the user's matplotlib is told to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE

from nanokimi.report.plots import RC
from nanokimi.runtime.drawing import draw_or_say, drawing, png_of, svg_of
from nanokimi.runtime.interrupts import Interrupted

DRAW = """
import hashlib, os, sys
from nanokimi.runtime.drawing import drawing, png_of, svg_of
with drawing({"svg.hashsalt": "x"}):
    from matplotlib.figure import Figure
    figure = Figure(figsize=(2, 1))
    figure.subplots().set_title("Loss")
    print(hashlib.sha256(png_of(figure, 50)).hexdigest(), "Loss" in svg_of(figure, 50))
print(os.environ.get("MPLBACKEND"), os.environ.get("MATPLOTLIBRC"))
"""
RUBBISH = "text.usetex: True\nfont.family: No Such Font\nsavefig.bbox: tight\nfigure.facecolor: red\n"


def test_no_setting_of_the_users_reaches_a_picture(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text(RUBBISH)
    plain = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "MATPLOTLIBRC")}
    notebook = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "MATPLOTLIBRC": str(tmp_path)}
    printed = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", DRAW],
            env={"PYTHONPATH": str(Path(__file__).parents[1]), **plain, **more},
            cwd=place,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        for more, place in (({}, tmp_path.parent), (notebook, tmp_path))
    ]
    (first, before), (second, after) = (done.stdout.splitlines() for done in printed)
    assert first == second and before == "None None"
    assert after == f"{notebook['MPLBACKEND']} {notebook['MATPLOTLIBRC']}", (
        "what follows has the user's settings"
    )


def test_settings_that_are_changed_in_the_process_stay_out_and_come_back() -> None:
    import matplotlib

    with drawing(RC):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(2, 1))
        figure.subplots().set_title("Loss")
        expected = png_of(figure, 50)
    with matplotlib.rc_context({"text.usetex": True, "axes.titlesize": 30}):
        with drawing(RC):
            figure = Figure(figsize=(2, 1))
            figure.subplots().set_title("Loss")
            assert png_of(figure, 50) == expected and svg_of(figure, 50).endswith("</svg>\n")
        assert matplotlib.rcParams["text.usetex"] and matplotlib.rcParams["axes.titlesize"] == 30


def test_pyplot_which_would_look_for_a_screen_is_never_imported() -> None:
    root = Path(__file__).resolve().parents[1] / "nanokimi"
    assert not [path for path in root.rglob("*.py") if "pyplot" in path.read_text(encoding="utf-8")]


def test_an_interrupted_picture_ends_the_command_and_says_how_to_make_it(tmp_path: Path) -> None:
    def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it goes on")

    with pytest.raises(Interrupted, match="whole.*nanokimi report x") as caught:
        draw_or_say(interrupted, tmp_path, "nanokimi report x")
    assert caught.value.exit_status == 128 + signal.SIGINT
    assert draw_or_say(lambda: None, tmp_path, "nanokimi report x")
