"""`nanokimi plot`: a picture of any runs."""

from __future__ import annotations

from pathlib import Path

from nanokimi.cli.options import require_targets, take_options
from nanokimi.errors import UserError
from nanokimi.runtime.interrupts import Interrupted
from nanokimi.runtime.text import one_line, visible


def run_plot(arguments: list[str]) -> int:
    """`nanokimi plot`."""
    options, folders = take_options(arguments, {"kind": str, "x": str, "out": str})
    require_targets(folders, "folder")
    kind, x = (str(options[name]) if name in options else None for name in ("kind", "x"))
    from nanokimi.compare.plot import Picture, require_format, shown_of

    if "out" in options:
        require_format(Path(str(options["out"])))
    try:
        picture = Picture(shown_of([Path(folder) for folder in folders], kind, x))
        out = picture.save(str(options.get("out") or f"{picture.shown.kind}.html"))
    except (UserError, OSError, Interrupted):
        raise
    except Exception as error:  # a record without a number, or with a word in its place
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"the records hold what cannot be drawn ({reason}): were they changed?") from None
    for note in picture.shown.notes:
        print(visible(note))
    print(f"{'Open: ' if out.suffix == '.html' else ''}{out}")
    return 0
