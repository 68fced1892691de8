"""Matplotlib with our settings alone: no matplotlibrc, style or backend of the user's reaches a picture.

Jupyter and Colab set MPLBACKEND for every command that a cell starts, and a user's matplotlibrc may ask for TeX or for
a font that is not there. Neither may cost a picture that ends hours of training.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanokimi.runtime.interrupts import Interrupted, stopped_by_signal
from nanokimi.runtime.progress import progress_console
from nanokimi.runtime.text import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def drawing(settings: Mapping[Any, Any] | None = None) -> Iterator[None]:
    """A block that draws with matplotlib's defaults and these settings. The user's own are restored afterwards."""
    _import_matplotlib()
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(dict(settings or {}))
        yield


def _import_matplotlib() -> None:
    """Import matplotlib, which reads MPLBACKEND and a matplotlibrc as it does so, without the user's."""
    if "matplotlib" in sys.modules:
        return
    ours = {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        import matplotlib  # noqa: F401
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def png_of(figure: Figure, dpi: float) -> bytes:
    """A figure as a PNG picture on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", backend="agg", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def svg_of(figure: Figure, dpi: float, background: str | None = None) -> str:
    """A figure as an SVG picture, by default without a background. The same figure always gives the same text."""
    buffer = io.StringIO()
    behind: dict[str, Any] = {"facecolor": background} if background else {"transparent": True}
    figure.savefig(buffer, format="svg", backend="svg", dpi=dpi, metadata={"Date": None}, **behind)
    return buffer.getvalue()


def draw_or_say(draw: Callable[[], object], folder: Path, again: str) -> bool:
    """Draw, and if that fails print one line that says why and that the command `again` repeats it.

    The numbers are written before they are drawn. Whatever is wrong with a picture, they must still be shown.

    A terminal shows that it draws. Raises Interrupted, with such a line, at the first signal.
    """
    try:
        with stopped_by_signal(
            f"interrupted while drawing; the numbers in {folder} are whole, and the pictures are made by: {again}"
        ):
            with progress_console().status("drawing the pictures"):
                draw()
    except Interrupted:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")
        said = f"the pictures of {folder} could not be drawn ({why}); the numbers are whole"
        print(f"nanokimi: {said}. Try again: {again}", file=sys.stderr)
        return False
    return True
