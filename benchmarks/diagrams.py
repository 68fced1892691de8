"""The diagrams of docs/kimi-k2.md, as SVG in docs/images: sizes from the presets, curves from our own functions.

python benchmarks/diagrams.py            # write them
python benchmarks/diagrams.py --check    # change nothing; exit status 1 if a file differs (a test calls it)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from diagrams_model import block, mla, moe
from diagrams_training import balancing, muon, qk_clip
from recorded import ROOT
from svg_canvas import Sheet

from nanokimi.runtime.files import write_atomic

IMAGES = ROOT / "docs" / "images"
DIAGRAMS: dict[str, Callable[[], Sheet]] = {
    "kimi-block": block,
    "kimi-mla": mla,
    "kimi-moe": moe,
    "kimi-balancing": balancing,
    "kimi-muon": muon,
    "kimi-qk-clip": qk_clip,
}


def main() -> int:
    """Write or check the files, and name those that differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing, and say what differs")
    check, differ = parser.parse_args().check, []
    for name, draw in DIAGRAMS.items():
        path, text = IMAGES / f"{name}.svg", draw().svg()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            differ.append(path.name)
            if not check:
                write_atomic(path, text)
    for name in differ:
        print(f"{name}: {'differs from what the script draws' if check else 'written'}", file=sys.stderr)
    return int(check and bool(differ))


if __name__ == "__main__":
    raise SystemExit(main())
