"""The page: its head, its tabs and its look. Everything that it loads comes from this server."""

from __future__ import annotations

from functools import partial
from importlib import resources
from typing import Any

import gradio as gr
from gradio.themes.utils import colors, sizes

from nanokimi.play import tab_compare, tab_inside, tab_watch, tab_write
from nanokimi.play.calls import Page
from nanokimi.play.complaints import Complaints
from nanokimi.play.desk import Desk
from nanokimi.play.places import Places

TITLE = "nanokimi play"
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
LARGE = (
    "const on=document.documentElement.classList.toggle('nk-large');this.setAttribute('aria-pressed',on);"
    "document.querySelectorAll('.nk-frame').forEach(f=>f.contentDocument.documentElement.style.fontSize=on?'125%':'')"
)
TOP = f"""
<div class="nk-top"><h1>nano<span>kimi</span></h1><p>Kimi K2's ideas at nano scale, beside NanoGPT</p>
<button type="button" aria-pressed="false" onclick="{LARGE}">Large text</button></div>
"""


def build_page(desk: Desk, places: Places, complaints: Complaints) -> gr.Blocks:
    """The page with all its tabs."""
    with Page(complaints, title=TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(TOP, elem_classes="nk-plain", apply_default_css=False)
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Write", id="write") as write:
                prompt, settings = tab_write.build(desk)
            with gr.Tab("Look inside", id="inside") as inside:
                tab_inside.build(desk, prompt, settings)
            with gr.Tab("Compare", id="compare") as compare:
                tab_compare.build(places)
            with gr.Tab("Watch", id="watch") as watch:
                clock = tab_watch.build(places)
        for tab in (write, inside, compare, watch):
            tab.select(
                partial(clock_update, tab is watch), None, clock, queue=False, api_visibility="private"
            )
    page.queue(max_size=None, api_open=False)
    page.space_id = None  # else the page of a Space gets a header that asks other addresses, for fonts too
    return page


def clock_update(active: bool) -> Any:
    """Let the clock of the Watch tab run, or stand still."""
    return gr.Timer(active=active)


def look() -> dict[str, Any]:
    """Theme and style, as Gradio takes them when a page is served."""
    css = resources.files("nanokimi.play").joinpath("style.css").read_text(encoding="utf-8")
    return {"theme": theme(), "head": f"<style>{css}</style>"}  # as css=, Gradio would rewrite its selectors


def theme() -> gr.themes.Base:
    """Gradio's components in the colours of the reports, with the machine's own fonts."""
    made = gr.themes.Base(
        primary_hue=colors.sky,
        neutral_hue=colors.slate,
        text_size=sizes.text_lg,
        radius_size=sizes.radius_lg,
        font=SANS,
        font_mono=MONO,
    )
    both = {
        "body_background_fill": "var(--nk-page)",
        "body_text_color": "var(--nk-ink)",
        "body_text_color_subdued": "var(--nk-muted)",
        "background_fill_primary": "var(--nk-page)",
        "background_fill_secondary": "var(--nk-card)",
        "block_background_fill": "var(--nk-card)",
        "block_border_color": "var(--nk-line)",
        "block_label_text_color": "var(--nk-muted)",
        "block_title_text_color": "var(--nk-muted)",
        "border_color_primary": "var(--nk-line)",
        "input_background_fill": "var(--nk-raised)",
        "input_border_color": "var(--nk-line)",
        "input_border_color_focus": "var(--nk-accent)",
        "button_primary_background_fill": "var(--nk-arm-0)",
        "button_primary_background_fill_hover": "var(--nk-arm-0)",
        "button_primary_text_color": "var(--nk-page)",
        "button_secondary_background_fill": "var(--nk-card)",
        "button_secondary_text_color": "var(--nk-ink)",
        "checkbox_background_color_selected": "var(--nk-arm-0)",
        "checkbox_label_background_fill": "var(--nk-card)",
        "checkbox_label_background_fill_selected": "var(--nk-accent-soft)",
        "checkbox_label_text_color": "var(--nk-ink)",
        "checkbox_label_text_color_selected": "var(--nk-ink)",
        "color_accent": "var(--nk-accent)",
        "color_accent_soft": "var(--nk-accent-soft)",
    }
    return made.set(**both, **{f"{key}_dark": value for key, value in both.items() if key != "color_accent"})
