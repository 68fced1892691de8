"""The server of the page: Gradio's application behind a guard, on a socket of ours."""

from __future__ import annotations

import os
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from gradio.routes import mount_gradio_app
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from nanokimi.play.asked import Limits
from nanokimi.play.complaints import Complaints
from nanokimi.play.desk import Desk
from nanokimi.play.guard import Guard
from nanokimi.play.models import Player, open_players
from nanokimi.play.page import build_page, look
from nanokimi.play.places import Places
from nanokimi.pretrained import run_path
from nanokimi.runtime.sockets import is_loopback
from nanokimi.serve.app import LOOPBACK

SERVED: dict[str, Any] = {
    "footer_links": [],
    "run_history": False,
    "show_error": False,
    "max_file_size": "1kb",
    "ssr_mode": False,
    "pwa": False,
    "mcp_server": False,
    "enable_monitoring": False,
}
"""How Gradio serves the page: without anything that a visitor could leave or take."""
MOST_SESSIONS = 256
"""Pages whose state is kept, those used last; more than can be in work and wait by default. Gradio would keep 10,000,
each with the last view that it showed."""


def build_app(
    players: dict[str, Player], limits: Limits, places: Places, *, loopback: bool
) -> tuple[FastAPI, Desk]:
    """The application, and the desk that computes for it.

    Args:
        loopback: answer only requests that name this machine, so that no page in a browser reaches the server by a
            name that it makes point here.
    """
    complaints = Complaints()
    desk = Desk(players, limits, complaints.fault)
    app = FastAPI(**guarded(loopback, complaints))
    page = build_page(desk, places, complaints)
    page.state_session_capacity = MOST_SESSIONS
    return mount_gradio_app(app, page, path="/", **SERVED, **look()), desk


def guarded(loopback: bool, complaints: Complaints) -> dict[str, Any]:
    """What FastAPI is given: our guard before everything, no pages of its own."""
    hosts = [Middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK, www_redirect=False)]
    middleware = [*(hosts if loopback else []), Middleware(Guard, complaints=complaints)]
    return {"middleware": middleware, "docs_url": None, "redoc_url": None, "openapi_url": None}


def space(*runs: str, **limits: Any) -> None:
    """The page as a Hugging Face Space runs it: its whole `app.py` is a call of this.

    It listens where the Space says (GRADIO_SERVER_NAME and GRADIO_SERVER_PORT), or on this machine, and is launched by
    Gradio, which is what ZeroGPU waits for.
    """
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    port = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    on_zero_gpu = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
    if on_zero_gpu:
        declare_gpu_function()
    device = "cpu" if on_zero_gpu else None  # outside of its functions, ZeroGPU only pretends to have CUDA
    complaints = Complaints()
    desk = Desk(open_players(runs, device), Limits(**limits), complaints.fault)
    page = build_page(desk, Places(tuple(map(run_path, runs))), complaints)
    where = {"server_name": host, "server_port": port, "share": False, "inline": False, "quiet": True}
    where["state_session_capacity"] = MOST_SESSIONS
    loopback = is_loopback(str(socket.getaddrinfo(host, port)[0][4][0]))
    try:
        page.launch(app_kwargs=guarded(loopback, complaints), **where, **SERVED, **look())
    finally:
        desk.close()


def declare_gpu_function() -> None:
    """Name a function that needs a GPU, as ZeroGPU demands. The page computes on the CPU and never calls it."""
    import spaces

    def unused() -> None: ...

    spaces.GPU(duration=1)(unused)


def serve_players(
    players: dict[str, Player], limits: Limits, places: Places, listener: socket.socket
) -> None:
    """Serve the page of these models until Ctrl-C."""
    loopback = is_loopback(str(listener.getsockname()[0]))
    app, desk = build_app(players, limits, places, loopback=loopback)
    settings = uvicorn.Config(app, log_level="critical", timeout_keep_alive=30, timeout_graceful_shutdown=2)
    try:
        with listener:
            uvicorn.Server(settings).run(sockets=[listener])
    finally:
        desk.close()
