"""The HTTP side: /v1/models, /v1/completions and /health, in OpenAI's form, with one-line errors as JSON."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from nanokimi.generation.text import Piece
from nanokimi.serve.requests import Asked, Refused, parse_body, understand
from nanokimi.serve.worker import Job, Served, Worker

MAX_BODY_BYTES = 1 << 20
LOOPBACK = ["localhost", "127.0.0.1", "[::1]"]
SECONDS_FOR_A_BODY = 30.0


def build_app(
    models: dict[str, Served], worker: Worker, *, most_tokens: int, key: str | None, loopback: bool
) -> Starlette:
    """The application.

    Args:
        most_tokens: the largest `max_tokens`.
        key: what clients have to send as their API key; None: nothing.
        loopback: answer only requests that name this machine, so that no page in a browser reaches the server by a
            name that it makes point here.
    """

    @asynccontextmanager
    async def running(app: Starlette) -> AsyncIterator[None]:
        worker.thread.start()
        yield
        worker.stop()

    async def list_models(request: Request) -> Response:
        require_key(request, key)
        data = [described(served) for served in models.values()]
        return JSONResponse({"object": "list", "data": data})

    async def one_model(request: Request) -> Response:
        require_key(request, key)
        return JSONResponse(described(model_of(models, request.path_params["name"])))

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "requests": worker.present})

    async def completions(request: Request) -> Response:
        require_key(request, key)
        body = parse_body(await read_body(request))
        served = model_of(models, body.get("model"))
        asked = understand(body, served.tokenizer, served.engine.limit, most_tokens)
        pieces: asyncio.Queue[Piece | Refused | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(piece: Piece | Refused | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        job = Job(served, asked, tell)
        worker.submit([job])
        if asked.stream:
            events = stream_events(job, pieces)
            return StreamingResponse(events, media_type="text/event-stream")
        return await whole_answer(request, job, pieces)

    hosts = [Middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK, www_redirect=False)]
    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", one_model),
            Route("/v1/completions", completions, methods=["POST"]),
        ],
        middleware=hosts if loopback else [],
        exception_handlers={Refused: refused, HTTPException: no_such_page, Exception: unexpected},
        lifespan=running,
    )


async def refused(request: Request, error: Exception) -> Response:
    """The answer to a request that cannot be served."""
    assert isinstance(error, Refused)
    headers = {"Retry-After": "1"} if error.status == 429 else None
    return JSONResponse(error.content(), error.status, headers)


async def no_such_page(request: Request, error: Exception) -> Response:
    """The answer to a wrong address or method."""
    assert isinstance(error, HTTPException)
    chat = request.url.path.endswith("/chat/completions")
    why = "this is no chat model" if chat else f"{request.method} {request.url.path[:100]} is not served"
    return await refused(request, Refused(error.status_code, f"{why}: use POST /v1/completions"))


async def unexpected(request: Request, error: Exception) -> Response:
    """The answer if this program is wrong; its name tells more than nothing, and a traceback would tell too much."""
    return await refused(request, Refused(500, f"unexpected {type(error).__name__}"))


def require_key(request: Request, key: str | None) -> None:
    """Raises Refused (401) if clients have to send a key and this one did not."""
    sent = request.headers.get("authorization", "")
    if key is not None and not hmac.compare_digest(sent.encode(), f"Bearer {key}".encode()):
        raise Refused(401, "the API key is missing or wrong", code="invalid_api_key")


async def read_body(request: Request) -> bytes:
    """The body of a JSON request of at most MAX_BODY_BYTES. Raises Refused.

    Only JSON is accepted: a browser sends it to another site only after asking, and this server does not permit it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, "the content type is not application/json")
    body = b""
    try:
        async with asyncio.timeout(SECONDS_FOR_A_BODY):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise Refused(413, f"the body has more than {MAX_BODY_BYTES} bytes")
    except TimeoutError:
        raise Refused(408, f"the body did not come within {SECONDS_FOR_A_BODY:.0f} seconds") from None
    except ClientDisconnect:
        raise Refused(400, "the client has gone") from None
    return body


def model_of(models: dict[str, Served], name: Any) -> Served:
    """The model of that name. Raises Refused (404)."""
    if isinstance(name, str) and name in models:
        return models[name]
    known = ", ".join(models)
    shown = f"'{name[:80]}'" if isinstance(name, str) else "no model"
    raise Refused(404, f"there is {known}, not {shown}", "model", "model_not_found")


def described(served: Served) -> dict[str, Any]:
    """A model in the list of models."""
    limits = {"context_length": served.engine.limit}
    owner = {"object": "model", "created": served.created, "owned_by": "nanokimi"}
    return {"id": served.name, **owner, **limits}


def answer(job: Job, identity: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """A completion object."""
    made = {"object": "text_completion", "created": int(time.time())}
    return {"id": identity, **made, "model": job.served.name, "choices": choices}


def choice(row: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    """One text of a completion object."""
    return {"index": row, "text": text, "logprobs": None, "finish_reason": finish_reason}


def usage(job: Job) -> dict[str, int]:
    """The tokens read and written, and the bytes that the texts held in the cache at most."""
    n = job.asked.n
    read = sum(len(request.prompt_ids) for request in job.asked.requests[::n])
    written = sum(len(writing.written) for writing in job.writings)
    held = sum(writing.cache_bytes for writing in job.writings)
    counts = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return {**counts, "cache_bytes": held}


def prompt_of(asked: Asked, row: int) -> str:
    """The prompt that `echo` puts before a text."""
    return asked.prompts[row // asked.n] if asked.echo else ""


async def whole_answer(request: Request, job: Job, pieces: asyncio.Queue[Piece | Refused | None]) -> Response:
    """The answer to a request that does not stream. If the client goes, the job is dropped."""
    texts = [prompt_of(job.asked, row) for row in range(len(job.asked.requests))]
    reasons: list[str | None] = [None] * len(texts)
    try:
        while True:
            try:
                piece = await asyncio.wait_for(pieces.get(), 0.5)
            except TimeoutError:
                if await request.is_disconnected():
                    return Response(status_code=499)
                continue
            if piece is None:
                break
            if isinstance(piece, Refused):
                raise piece
            texts[piece.row] += piece.text
            reasons[piece.row] = piece.finish_reason or reasons[piece.row]
    finally:
        job.cancelled = True
    choices = [choice(row, text, reasons[row]) for row, text in enumerate(texts)]
    return JSONResponse({**answer(job, f"cmpl-{uuid.uuid4().hex}", choices), "usage": usage(job)})


async def stream_events(job: Job, pieces: asyncio.Queue[Piece | Refused | None]) -> AsyncIterator[str]:
    """The events of a request that streams."""
    identity, begun = f"cmpl-{uuid.uuid4().hex}", set()
    try:
        while (piece := await pieces.get()) is not None:
            if isinstance(piece, Refused):
                yield event(piece.content())
                return
            text = piece.text if piece.row in begun else prompt_of(job.asked, piece.row) + piece.text
            begun.add(piece.row)
            yield event(answer(job, identity, [choice(piece.row, text, piece.finish_reason)]))
        if job.asked.include_usage:
            yield event({**answer(job, identity, []), "usage": usage(job)})
        yield "data: [DONE]\n\n"
    finally:
        job.cancelled = True  # also when the client has gone


def event(content: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(content)}\n\n"
