"""The pictures in docs/play.md and docs/inside.md: the weights that come with the package, in a Chromium.

    pip install -c constraints.txt -e '.[browser]'
    python benchmarks/play_pictures.py docs/images

One command takes them all. The page of play is left as it opens: its own beginning, models, seed, and length, with
which both stories come to their end. The page of inspect is that of PROMPT. For Watch, `nanokimi compare` trains in
another process, for half a minute or a minute, and is ended as soon as its picture is taken.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from small_png import smaller

from nanokimi.runtime.files import write_atomic

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from browser import find_chromium

WIDE, NARROW, HEIGHT = 1280, 390, 1160
PROMPT = "Far from here, in Fernhill, somebody called Anton"
TRAINED, TRAINING = "tales", ["compare", "--seeds", "1", "--train.eval_every", "20"]
LATE = "/step 1[0-9][0-9] of 200/"
"""A step in the second half of a training."""
BELOW = 7
"""Pixels under the last thing on a picture, half the gap to the next."""
PATIENCE = 300_000
"""Milliseconds for anything that is waited for: the training prepares its text first."""
WRITTEN = (
    "document.querySelector('#nk-panes .nk-numbers') && !document.querySelector('#nk-panes [aria-busy=true]')"
)


def main() -> None:
    """Start the page of play, take the pictures, and end it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    with TemporaryDirectory() as made:
        runs = Path(made) / "runs"
        runs.mkdir()
        with program("play", "--port", "0", "--runs", str(runs)) as server:
            assert server.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
            if found is None:
                sys.exit("the page did not start")
            take(found[0], runs, folder)


@contextmanager
def program(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A command of nanokimi in a process of its own, which is ended afterwards."""
    command = [sys.executable, "-m", "nanokimi", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def take(url: str, runs: Path, folder: Path) -> None:
    """The pictures of all tabs, and of the page that inspect writes."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])

        def picture(
            name: str, width: int, scheme: str, show: Callable[[Any], Any], address: str = url
        ) -> None:
            """The page from its top to the end of what `show` brings onto it, once it stands still."""
            page = browser.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme)
            page.set_default_timeout(PATIENCE)
            page.goto(address)
            last = show(page)
            page.mouse.move(0, 0)
            page.evaluate("scrollTo(0, 0)")
            page.wait_for_timeout(1000)
            box = last.bounding_box()
            whole = {"x": 0, "y": 0, "width": width, "height": box["y"] + box["height"] + BELOW}
            write_atomic(folder / f"{name}.png", smaller(page.screenshot(full_page=True, clip=whole)))
            page.close()

        picture("play-write", WIDE, "light", written)
        picture("play-write-phone", NARROW, "light", written)
        picture("play-inside", WIDE, "light", looked_inside)
        picture("play-compare", WIDE, "dark", compared)
        html = runs.parent / "inside.html"
        words = ["inspect", "tales-1m", "--prompt", PROMPT, "--max_new_tokens", "80", "--html", str(html)]
        subprocess.run([sys.executable, "-m", "nanokimi", *words], check=True)
        picture("inside", WIDE, "light", lambda page: page.locator(".detail").first, html.as_uri())
        with program(*TRAINING, "--out", str(runs / TRAINED)) as training:
            while not any(runs.glob(f"{TRAINED}/**/metrics.jsonl")):
                if training.poll() is not None:
                    sys.exit("the training has ended before it could be watched")
                time.sleep(1)
            picture("play-watch", WIDE, "dark", watched)
        browser.close()


def written(page: Any) -> Any:
    """Write: two stories; on a phone the first of them, below which the second stands."""
    page.click("#nk-write")
    page.wait_for_function(WRITTEN)
    if page.viewport_size["width"] == NARROW:
        return page.locator("#nk-panes .nk-pane").first
    return page.get_by_text("The same text from the command line")


def looked_inside(page: Any) -> Any:
    """Look inside: the first token that was written."""
    page.get_by_role("tab", name="Look inside", exact=True).click()
    page.click("#nk-look")
    inside = page.frame_locator("#nk-inside iframe")
    inside.locator("text=The ten likeliest").first.wait_for()
    return inside.locator(".detail").first


def compared(page: Any) -> Any:
    """Compare: the first screen of the report of the weights' training."""
    page.get_by_role("tab", name="Compare", exact=True).click()
    page.click("#nk-compare")
    first = page.frame_locator("#nk-report iframe").get_by_label("Loss and cost")
    first.wait_for()
    return first


def watched(page: Any) -> Any:
    """Watch: runs in the second half of their training, down to the first row of them."""
    from playwright.sync_api import TimeoutError as TooLate

    page.get_by_role("tab", name="Watch", exact=True).click()
    option = page.get_by_role("option", name=TRAINED, exact=True)
    for _ in range(20):  # the list is renewed every few seconds, but not while it is open
        page.click("#nk-watch-run input")
        try:
            option.click(timeout=1000)
            break
        except TooLate:
            page.evaluate("document.activeElement.blur()")
            page.wait_for_timeout(2000)
    page.locator(f"#nk-watch >> text={LATE}").first.wait_for()
    return page.locator("#nk-watch .nk-pane").first


if __name__ == "__main__":
    main()
