"""The pictures in docs/play.md and docs/inside.md: the weights that come with the package, in a Chromium.

    pip install -c constraints.txt -e '.[browser]'
    python benchmarks/play_pictures.py docs/images

The page of play is left as it opens: its own beginning, models, seed, and length, with which both stories come to their
end. The page of inspect is that of PROMPT.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from browser import find_chromium

WIDTH, HEIGHT = 1280, 1160
PROMPT = "Far from here, in Fernhill, somebody called Anton"
BELOW = 7
"""Pixels under the last thing on a picture, half the gap to the next."""
WRITTEN = (
    "document.querySelector('#nk-panes .nk-numbers') && !document.querySelector('#nk-panes [aria-busy=true]')"
)


def main() -> None:
    """Start the page of play, take the pictures, and end it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    command = [sys.executable, "-m", "nanokimi", "play", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
            if found is None:
                sys.exit("the page did not start")
            take(found[0], folder)
        finally:
            server.terminate()


def take(url: str, folder: Path) -> None:
    """The pictures of the tabs Write and Look inside, and of the page that inspect writes."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(url)
        page.click("#nk-write")
        page.wait_for_function(WRITTEN)
        picture(page, page.get_by_text("The same text from the command line"), folder / "play-write.png")
        page.get_by_role("tab", name="Look inside", exact=True).click()
        page.click("#nk-look")
        inside = page.frame_locator("#nk-inside iframe")
        inside.locator("text=The ten likeliest").first.wait_for()
        picture(page, inside.locator(".detail").first, folder / "play-inside.png")
        with TemporaryDirectory() as made:
            html = Path(made) / "inside.html"
            words = ["inspect", "tales-1m", "--prompt", PROMPT, "--max_new_tokens", "80", "--html", str(html)]
            subprocess.run([sys.executable, "-m", "nanokimi", *words], check=True)
            page.goto(html.as_uri())
            picture(page, page.locator(".detail").first, folder / "inside.png")
        browser.close()


def picture(page: Any, last: Any, path: Path) -> None:
    """The page from its top to the end of `last`, once it stands still."""
    page.mouse.move(0, 0)
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(1000)
    box = last.bounding_box()
    whole = {"x": 0, "y": 0, "width": WIDTH, "height": box["y"] + box["height"] + BELOW}
    page.screenshot(path=str(path), full_page=True, clip=whole)


if __name__ == "__main__":
    main()
