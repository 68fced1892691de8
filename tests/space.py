"""A Hugging Face Space on this machine: installed as the Hub does it, started with its environment, and visited.

`make space-rehearsal` runs this file. What a Space does is known from the Hub's documentation (its configuration
reference, overview and ZeroGPU pages, read in their version of 2026-08-22) and from published build logs: Python of the
given version, the packages below before or after `requirements.txt`, of which nothing else of the Space is beside it,
then the files, then `python app.py`. No Space has been reached from here.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from browser import find_chromium

ROOT = Path(__file__).resolve().parents[1]
SPACE = ROOT / "examples" / "space"
NAME = "someone/nanokimi"
BEFORE = ["datasets", "huggingface-hub>=0.19"]
AFTER = ["uvicorn>=0.14.0", "websockets>=10.4", "spaces"]
ENVIRONMENT = {
    "SYSTEM": "spaces",
    "SPACE_ID": NAME,
    "SPACE_AUTHOR_NAME": "someone",
    "SPACE_REPO_NAME": "nanokimi",
    "SPACE_TITLE": "nanokimi",
    "SPACE_HOST": "someone-nanokimi.hf.space",
    "CPU_CORES": "2",
    "MEMORY": "16Gi",
    "ACCELERATOR": "none",
    "GRADIO_ALLOW_FLAGGING": "never",
    "GRADIO_NUM_PORTS": "1",
    "GRADIO_THEME": "huggingface",
    "GRADIO_SERVER_NAME": "0.0.0.0",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
NOBODY = "http://127.0.0.1:9"
"""A proxy that does not answer, for whatever would go out."""
WRITTEN = (
    "document.querySelector('#nk-panes .nk-numbers') && !document.querySelector('#nk-panes [aria-busy=true]')"
)


def settings() -> dict[str, Any]:
    """The lines above the README of the Space, which configure it."""
    found: dict[str, Any] = yaml.safe_load(
        (SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    )
    return found


def files_of(folder: Path) -> dict[str, float]:
    """Every file below a folder with the time of its last change."""
    return {str(path): path.stat().st_mtime for path in sorted(folder.rglob("*"))}


class DeviceApi(ThreadingHTTPServer):
    """What ZeroGPU's own package reports to when a page is launched."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    """Every request is right, and kept."""

    server: DeviceApi

    def do_POST(self) -> None:  # noqa: N802
        """Keep the path and answer with nothing."""
        self.server.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def running(
    python: str, folder: Path, home: Path, patience: float, more: dict[str, str] | None = None
) -> Iterator[tuple[str, Path]]:
    """`app.py` of a folder, as a Space starts it: its address, and the file that has what it said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home.mkdir(exist_ok=True)
    env = {
        **ENVIRONMENT,
        "PATH": os.defpath,
        "HOME": str(home),
        "PYTHONPATH": str(folder),
        "GRADIO_SERVER_PORT": str(port),
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), NOBODY),
        "NO_PROXY": "localhost,127.0.0.1",
        **(more or {}),
    }
    said = home / "said.txt"
    with said.open("w") as file:
        process = subprocess.Popen([python, "app.py"], cwd=folder, env=env, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + patience
        while True:
            with socket.socket() as asking:
                if asking.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None and time.monotonic() < deadline, said.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", said
    finally:
        process.terminate()
        process.wait()


def visit(chromium: Any, url: str, milliseconds: float) -> list[str]:
    """Write, look inside and compare; returns what went wrong, and every request to another address."""
    page, wrong = chromium.new_page(), []
    page.set_default_timeout(milliseconds)
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    ours = (url, "data:", "blob:", "about:")
    page.on("request", lambda sent: None if sent.url.startswith(ours) else wrong.append(sent.url))
    page.goto(url)
    page.fill("#nk-prompt textarea", "One day")
    page.click("#nk-write")
    page.wait_for_function(WRITTEN)
    stories = page.locator("#nk-panes .nk-story").all_inner_texts()
    if len(stories) != 2 or not all(len(story) > 100 and story.startswith("One day") for story in stories):
        wrong.append(f"not two stories: {stories}")
    page.get_by_role("tab", name="Look inside", exact=True).click()
    page.click("#nk-look")
    inside = page.frame_locator("#nk-inside iframe")
    inside.locator("text=The ten likeliest in its place").first.wait_for()
    page.get_by_role("tab", name="Compare", exact=True).click()
    page.click("#nk-compare")
    page.frame_locator("#nk-report iframe").locator("text=nats per token").first.wait_for()
    page.close()
    return wrong


def install(folder: Path, python: str) -> Path:
    """A new Python with what the Space's would have, in the Hub's order; `requirements.txt` is alone beside pip."""
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    made, alone = folder / "bin" / "python", folder / "alone"
    # With PYTHONPATH, pip would take for installed what only this process can import.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    alone.mkdir()
    shutil.copy(SPACE / "requirements.txt", alone)
    gradio = f"gradio[oauth,mcp]=={settings()['sdk_version']}"
    for words in (BEFORE, ["-r", "requirements.txt"], [gradio, *AFTER]):
        print("pip install", *words, flush=True)
        subprocess.run([made, "-m", "pip", "install", "--quiet", *words], cwd=alone, env=env, check=True)
    subprocess.run([made, "-m", "pip", "check"], env=env, check=True)
    return made


def main(work: Path, python: str) -> None:
    """Install into `work` with a virtual environment of `python`, then run the Space on CPU Basic and on ZeroGPU."""
    from playwright.sync_api import sync_playwright

    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    subprocess.run(["make", "--silent", "space"], cwd=ROOT, check=True)
    folder = shutil.copytree(ROOT / "build" / "space", work / "app")
    made, before = install(work / "python", python), files_of(folder)
    with DeviceApi() as device, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        zero = {
            "SPACES_ZERO_GPU": "true",
            "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{device.server_address[1]}",
        }
        for hardware, more in (("CPU Basic", {}), ("ZeroGPU", zero)):
            home = work / re.sub(r"\W", "", hardware)
            with running(str(made), folder, home, 600, more) as (url, said):
                wrong = visit(chromium, url, 300_000)
            assert not wrong, (hardware, wrong, said.read_text())
            print(f"{hardware}: two texts, their inside and the report were seen, nothing was asked outside")
        assert device.asked == ["/startup-report"], device.asked
        assert files_of(folder) == before, "the Space wrote into its own folder"


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
