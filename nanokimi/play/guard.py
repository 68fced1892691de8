"""What the page needs of Gradio's addresses stays open; whatever takes files or fetches addresses is closed.

A request that fails is answered in a sentence, and told on the terminal.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanokimi.play.complaints import REFUSAL, Complaints

MAX_BODY_BYTES = 1 << 22
CLOSED = (
    *(
        "/gradio_api/upload",
        "/gradio_api/proxy",
        "/gradio_api/file",
        "/gradio_api/stream",
        "/gradio_api/component_server",
    ),
    *(
        "/gradio_api/deep_link",
        "/gradio_api/vibe",
        "/gradio_api/process_recording",
        "/gradio_api/dev",
        "/gradio_api/custom_component",
        "/custom_component",
        "/monitoring",
    ),
)
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
"""A browser refuses to load anything for this page from elsewhere, whoever asks it to."""


class BodyTooLarge(Exception):
    """A request sends more than MAX_BODY_BYTES."""


class Guard:
    """ASGI middleware: closed addresses, a limit on what is sent, the page's content policy, answers to what fails."""

    def __init__(self, app: ASGIApp, complaints: Complaints) -> None:
        self.app, self.complaints = app, complaints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"].startswith(CLOSED):
            await PlainTextResponse("not served here\n", 404)(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > MAX_BODY_BYTES:
            await PlainTextResponse("too much was sent\n", 413)(scope, receive, send)
            return
        received, started, failed, answer = 0, False, False, (REFUSAL, 400)

        async def measured() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise BodyTooLarge
            return message

        async def with_policy(message: Message) -> None:
            nonlocal started, failed
            if message["type"] == "http.response.start":
                failed = message["status"] == 500
                started = not failed
                headers: list[Any] = list(message.get("headers", []))
                headers += [
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
                message = {**message, "headers": headers}
            if not failed:
                await send(message)

        try:
            await self.app(scope, measured, with_policy)
        except BodyTooLarge:
            if not started:
                await PlainTextResponse("too much was sent\n", 413)(scope, receive, send)
            return
        except ClientDisconnect:
            return
        except Exception as error:
            said, failed = self.complaints.say(error), not started
            answer = (said, 400 if said == REFUSAL else 500)
        if failed:
            await PlainTextResponse(f"{answer[0]}\n", answer[1])(scope, receive, send)
