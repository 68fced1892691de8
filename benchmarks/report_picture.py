"""The first screen of a comparison's report, as a PNG picture, in a Chromium.

    nanokimi report RUNS/COMPARISON            # makes report.html again, as the program makes it today
    python benchmarks/report_picture.py RUNS/COMPARISON docs/images/report.png

README's picture is of the runs that its table is of (`nanokimi compare --seeds 5`). If the program judges otherwise
since they ended, remove their report.json first: `nanokimi report` then judges them anew.
"""

from __future__ import annotations

import argparse
import base64
import sys
from pathlib import Path

from small_png import smaller

from nanokimi.runtime.files import write_atomic

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from browser import Browser, find_chromium

WIDTH, BELOW = 1200, 16
END = "document.querySelector('section[aria-label=\"Loss and cost\"]').getBoundingClientRect().bottom"
"""The last thing on the first screen: the curves with their caption, beside the costs."""


def main() -> None:
    """Open the page, and take the picture down to the end of the curves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    page, chromium = options.folder / "report.html", find_chromium()
    if not page.is_file() or chromium is None:
        parser.error(
            f"{page} is no file" if chromium else "no Chromium is installed: apt-get install chromium"
        )
    with Browser(chromium) as browser:
        browser.open(page, WIDTH)
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": browser.value(END) + BELOW, "scale": 1}
        taken = browser.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
    write_atomic(options.picture, smaller(base64.b64decode(taken["data"])))


if __name__ == "__main__":
    main()
