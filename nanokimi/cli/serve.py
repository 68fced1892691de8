"""`nanokimi serve`: the trained models of a folder behind an OpenAI-compatible address."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nanokimi.cli.options import one_run, take_options
from nanokimi.errors import UserError
from nanokimi.runtime.extras import how_to_install
from nanokimi.runtime.sockets import address_of, is_loopback, listen
from nanokimi.runtime.text import visible_line

if TYPE_CHECKING:
    from nanokimi.serve.worker import Served

KEY_VARIABLE = "NANOKIMI_API_KEY"
DEFAULTS = {"port": 8000, "max_tokens": 4096, "at_once": 8, "queue": 64}
LIMITS = {"port": (0, 65535), "max_tokens": (1, 1 << 20), "at_once": (1, 1024), "queue": (0, 100_000)}


def run_serve(arguments: list[str]) -> int:
    """`nanokimi serve`."""
    numbers: dict[str, Callable[[str], object]] = dict.fromkeys(DEFAULTS, int)
    options, rest = take_options(arguments, {**numbers, "host": str, "checkpoint": str, "device": str})
    folder = one_run(rest)
    number = {name: int(str(options.get(name, default))) for name, default in DEFAULTS.items()}
    for name, (low, high) in LIMITS.items():
        if not low <= number[name] <= high:
            raise UserError(f"--{name} is {number[name]}: it must be {low} to {high}")
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise UserError(f"serve needs starlette and uvicorn: {how_to_install('serve')}")
    host = str(options.get("host", "127.0.0.1"))
    listener = listen(host, number["port"])  # before the models are loaded
    loopback = is_loopback(str(listener.getsockname()[0]))
    key = os.environ.get(KEY_VARIABLE) or None
    if not loopback:
        whom = "those who have the key" if key else f"anyone (set {KEY_VARIABLE} to ask for a key)"
        print(f"nanokimi: warning: {host} can be reached from other machines, by {whom}", file=sys.stderr)

    import uvicorn

    from nanokimi.serve.app import build_app
    from nanokimi.serve.worker import Worker

    device = str(options["device"]) if "device" in options else None
    models = served_models(folder, device, str(options.get("checkpoint", "final")))
    worker = Worker(number["at_once"], number["queue"])
    app = build_app(models, worker, most_tokens=number["max_tokens"], key=key, loopback=loopback)
    print(
        f"Serving {', '.join(map(visible_line, models))} at http://{address_of(listener)}/v1 (Ctrl-C ends)",
        flush=True,
    )
    settings = uvicorn.Config(app, log_level="critical", timeout_keep_alive=30, timeout_graceful_shutdown=3)
    with listener:
        uvicorn.Server(settings).run(sockets=[listener])
    return 0


def served_models(folder: Path, device: str | None, checkpoint: str) -> dict[str, Served]:
    """The model of each arm, by its name: that of its folder. Raises UserError as `open_run` does."""
    from nanokimi.generation.engine import Engine
    from nanokimi.serve.worker import Served
    from nanokimi.train.run_folder import first_seeds, open_run

    models = {}
    for path in first_seeds(folder):
        run = open_run(path, device, checkpoint)
        run.model.eval()
        inside = path != folder and path.name.startswith("seed-")
        name = (path.parent if inside else path.resolve()).name
        created = int((path / "config.yaml").stat().st_mtime)
        engine = Engine(run.model, context_length=run.config.train.context_length)
        models[name] = Served(name, engine, run.data.tokenizer, created)
    return models
