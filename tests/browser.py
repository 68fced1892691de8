"""Headless Chromium, spoken to over two pipes (the Chrome DevTools Protocol), for the tests of pages and for pictures.

`python tests/browser.py PAGE.html FOLDER` writes screenshots of a page at every width, light and dark.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

WIDTHS = (390, 768, 1280)
SCHEMES = ("light", "dark")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TO_BROWSER, FROM_BROWSER = 3, 4  # the descriptors that --remote-debugging-pipe reads and writes


def find_chromium() -> str | None:
    """The program of a Chromium: $CHROMIUM, or one on the path."""
    return os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A headless Chromium with one tab."""

    def __init__(self, program: str) -> None:
        self.profile = tempfile.mkdtemp(prefix="nanokimi-browser-")
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
        ]
        flags += ["--no-first-run", "--disable-background-networking", "--remote-debugging-pipe"]
        script = f'exec "$@" {TO_BROWSER}<&{theirs_in} {FROM_BROWSER}>&{theirs_out}'
        words = [program, *flags, f"--user-data-dir={self.profile}", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", script, "bash", *words],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.writer, self.reader, self.unread = ours_out, ours_in, b""
        self.number, self.session = 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.session = None
        with contextlib.suppress(OSError, EOFError):
            self.call("Browser.close")
        self.process.wait()
        os.close(self.writer)
        os.close(self.reader)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of one command."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        for answer in self._messages():
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
        raise EOFError("the browser has gone")

    def wait_for(self, event: str) -> None:
        """Wait until the browser reports an event."""
        for message in self._messages():
            if message.get("method") == event:
                return

    def _messages(self) -> Iterator[dict[str, Any]]:
        while True:
            while b"\0" not in self.unread:
                piece = os.read(self.reader, 1 << 16)
                if not piece:
                    return
                self.unread += piece
            text, _, self.unread = self.unread.partition(b"\0")
            yield json.loads(text)

    def open(self, page: Path, width: int, scheme: str = "light", height: int = 900) -> None:
        """Show a page in a window of this width in CSS pixels."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait_for("Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def screenshot(self, *, whole: bool = False) -> bytes:
        """A PNG picture of the window, or of the whole page."""
        more: dict[str, Any] = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
            more = {"captureBeyondViewport": True, "clip": clip}
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", **more)["data"])


def main(page: Path, folder: Path) -> None:
    """Write the first screen and the whole page at every width and in both schemes."""
    program = find_chromium()
    assert program, "no Chromium is installed"
    folder.mkdir(parents=True, exist_ok=True)
    with Browser(program) as browser:
        for width in WIDTHS:
            for scheme in SCHEMES:
                browser.open(page, width, scheme)
                height = browser.value("document.documentElement.scrollHeight")
                print(width, scheme, height)
                name = f"{page.parent.name}-{page.stem}-{width}-{scheme}"
                (folder / f"{name}.png").write_bytes(browser.screenshot())
                if scheme == "light":
                    (folder / f"{name}-whole.png").write_bytes(browser.screenshot(whole=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
