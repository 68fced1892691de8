"""Small pieces of HTML. Whatever comes from a visitor, a model or a file goes through `shown`."""

from __future__ import annotations

from html import escape

from nanokimi.report import units
from nanokimi.runtime.text import sendable, visible


def shown(text: object) -> str:
    """A text as HTML that shows it as it is: tags are no tags, and control characters have a picture."""
    return escape(visible(text), quote=True)


def message(text: str, kind: str = "error") -> str:
    """A box with a line that a reader must see (an "error", or a "note"); "" if there is none."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="nk-message {kind}" role="{role}">{shown(text)}</div>' if text else ""


def empty(title: str, text: str) -> str:
    """What a place says that has nothing to show yet."""
    return f'<div class="nk-empty"><strong>{shown(title)}</strong><p>{shown(text)}</p></div>'


FIT = (
    "const f=this,d=f.contentDocument.documentElement;"
    "d.style.fontSize=document.documentElement.classList.contains('nk-large')?'125%':'';"
    "const fit=()=>{f.style.height=d.getElementsByTagName('body')[0].scrollHeight+8+'px'};"
    "fit();new ResizeObserver(fit).observe(f.contentDocument.body)"
)
"""Run when a frame has loaded: its text is as large as the page's, and it gets as high as its page, also when a part of
that is unfolded."""


def frame(page: str, title: str) -> str:
    """A whole HTML page of ours in a frame of its own, whose styles and scripts do not touch the page around it."""
    source = escape(sendable(page))
    return (
        f'<iframe class="nk-frame" title="{shown(title)}" onload="{escape(FIT)}" srcdoc="{source}"></iframe>'
    )


def into_view(button: str, result: str) -> str:
    """JavaScript for an event: scroll so that a result low in the window, or below it, is seen with its button.

    On a projector the settings fill the window. The event's inputs go on as they are.
    """
    return (
        "(...values) => {"
        f"const button = document.getElementById('{button}'), result = document.getElementById('{result}');"
        "if (result.getBoundingClientRect().top > innerHeight / 2) button.scrollIntoView();"
        "return values; }"
    )


def swatch(slot: int) -> str:
    """The mark of a model's colour."""
    return f'<i class="nk-dot" style="background:var(--nk-arm-{slot % 8})" aria-hidden="true"></i>'


def parameters(active: int, total: int) -> str:
    """A model's size in words."""
    if active == total:
        return f"{units.short(total)} parameters"
    return f"{units.short(active)} of {units.short(total)} parameters active"
