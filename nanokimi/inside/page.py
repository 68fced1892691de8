"""The inside view as HTML: a fragment with its style and script, for a notebook or another page, or one whole page.

The fragment holds the numbers as JSON, and the script builds what is seen of them with the text of the model as text,
never as HTML. Nothing is fetched: a whole page also forbids it to itself. Everything is below one element of the class
`nanokimi-inside`; the script looks after every such element that appears, so it has to be loaded only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

from nanokimi.errors import UserError
from nanokimi.inside.payload import as_json, packed_bytes, payload
from nanokimi.inside.subject import Subject
from nanokimi.inside.view import View, Wanted, with_maps
from nanokimi.runtime.text import listed

MOST_PAGE_BYTES = 3_000_000
SPARE_BYTES = 20_000
"""Kept free for what JSON adds to the maps."""


class Fragment(NamedTuple):
    """Three strings: put `style` and `script` on a page once, and `html` wherever a view shall be."""

    html: str
    style: str
    """CSS, without the style element."""
    script: str
    """JavaScript, without the script element."""


def fragment(views: Sequence[View]) -> Fragment:
    """One view, or several side by side."""
    return Fragment(
        html=_render("fragment.html", {"data": as_json([payload(view) for view in views])}),
        style=_render("inside.css", {}),
        script=_source("inside.js"),
    )


def page(views: Sequence[View]) -> str:
    """A whole page, which can be mailed."""
    names = listed(dict.fromkeys(view.look.name for view in views))
    context = {"title": f"Inside {names}", "one": fragment(views)}
    return _render("page.html", context)


def in_notebook(views: Sequence[View]) -> str:
    """A fragment with its style and script, as a notebook shows it."""
    return _render("notebook.html", {"one": fragment(views)})


def fitted(
    pairs: Sequence[tuple[View, Subject]],
    wanted: Wanted,
    most_bytes: int = MOST_PAGE_BYTES,
    *,
    must_show: bool = True,
) -> list[View]:
    """The views with as many of the wanted maps of attention as fit into a page of `most_bytes` bytes.

    Raises UserError for a layer or head that a model does not have, and as `with_maps` does if it `must_show` them.
    """
    room = most_bytes - SPARE_BYTES - len(page([view for view, _ in pairs]).encode())
    share = room // len(pairs)
    return [
        with_maps(view, subject, wanted, share // packed_bytes(len(view.look.tokens)), must_show=must_show)
        for view, subject in pairs
    ]


def fitted_page(pairs: Sequence[tuple[View, Subject]], wanted: Wanted) -> tuple[list[View], bytes]:
    """The views as `fitted` makes them, and their page. Raises UserError if it is too large even without maps."""
    views = fitted(pairs, wanted)
    content = page(views).encode()
    if len(content) > MOST_PAGE_BYTES:
        raise UserError(
            f"the page would have {len(content):,} bytes, and {MOST_PAGE_BYTES:,} are the most: choose a shorter "
            "prompt, or fewer max_new_tokens"
        )
    return views, content


def _source(name: str) -> str:
    return resources.files("nanokimi.inside").joinpath(name).read_text(encoding="utf-8")


def _render(template: str, context: dict[str, Any]) -> str:
    """A template filled in. What is not marked as safe in it is escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(context).lstrip()
