"""`nanokimi play`: models write side by side on a web page of this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from nanokimi.cli.options import require_targets, take_options, user_path
from nanokimi.errors import UserError
from nanokimi.pretrained import SHIPPED, run_path, shipped_names
from nanokimi.runtime.extras import how_to_install
from nanokimi.runtime.sockets import address_of, is_loopback, listen

DEFAULTS = {"port": 7860, "max_prompt": 4000, "max_tokens": 1000, "at_once": 8, "queue": 128}
RANGES = {
    "port": (0, 65535),
    "max_prompt": (1, 1_000_000),
    "max_tokens": (1, 1 << 20),
    "at_once": (1, 1024),
    "queue": (0, 100_000),
}


def run_play(arguments: list[str]) -> int:
    """`nanokimi play`."""
    numbers: dict[str, Callable[[str], object]] = dict.fromkeys(DEFAULTS, int)
    options, words = take_options(
        arguments, {**numbers, "runs": str, "host": str, "checkpoint": str, "device": str}
    )
    require_targets(words, "RUN")
    number = {name: int(str(options.get(name, default))) for name, default in DEFAULTS.items()}
    for name, (low, high) in RANGES.items():
        if not low <= number[name] <= high:
            raise UserError(f"--{name} is {number[name]}: it must be {low} to {high}")
    if not words and not (words := [str(SHIPPED / name) for name in shipped_names()[:1]]):
        raise UserError("play needs a RUN: this package comes without weights")
    runs = Path(user_path("--runs", str(options["runs"]))) if "runs" in options else None
    if runs is not None and not runs.is_dir():
        raise UserError(f"--runs {runs} is not a folder: name one that holds runs")
    if find_spec("gradio") is None:
        raise UserError(f"play needs gradio: {how_to_install('play')}")
    host = str(options.get("host", "127.0.0.1"))
    listener = listen(host, number["port"])  # before the models are loaded
    if not is_loopback(str(listener.getsockname()[0])):
        said = f"{host} can be reached from other machines, by anyone: the page has no password"
        print(f"nanokimi: warning: {said}", file=sys.stderr)

    from nanokimi.play.asked import Limits, require_room
    from nanokimi.play.models import open_players
    from nanokimi.play.places import Places

    device = str(options["device"]) if "device" in options else None
    players = open_players(words, device, str(options.get("checkpoint", "final")))
    limits = Limits(
        prompt_characters=number["max_prompt"],
        tokens=number["max_tokens"],
        at_once=number["at_once"],
        queue=number["queue"],
    )
    require_room(limits, len(players))
    places = Places(tuple(map(run_path, words)), runs or Path("runs"))
    from nanokimi.play.server import serve_players

    print(f"Open: http://{address_of(listener)} ({', '.join(players)}; Ctrl-C ends)", flush=True)
    serve_players(players, limits, places, listener)
    return 0
