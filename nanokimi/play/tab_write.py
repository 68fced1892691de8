"""The Write tab: one prompt, continued by several models side by side."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from nanokimi.errors import UserError
from nanokimi.play.asked import Limits, chosen_players, understand
from nanokimi.play.desk import Desk
from nanokimi.play.markup import into_view, message
from nanokimi.play.models import Player, presets
from nanokimi.play.panes import blank, panes

SECONDS_BETWEEN = 0.1
"""How often the page gets what is new."""


def build(desk: Desk) -> tuple[gr.Textbox, list[gr.Number]]:
    """Make the tab; returns its prompt and its settings, which other tabs use."""
    players = list(desk.players.values())
    sample, beginnings = players[0].run.config.sample, presets(players[0].run.data)
    prompt = gr.Textbox(
        value=(beginnings or [""])[0],
        label="Beginning",
        placeholder="Once upon a time",
        lines=1,
        max_lines=8,
        elem_id="nk-prompt",
    )
    with gr.Row(elem_classes="nk-presets"):
        for text in beginnings:
            button = gr.Button(text, size="sm", elem_classes="nk-chip", min_width=0)
            button.click(None, None, prompt, js=f"() => {json.dumps(text)}", api_visibility="private")
    chosen = gr.CheckboxGroup(
        list(desk.players),
        value=list(desk.players)[:4],
        label="Models",
        visible=len(players) > 1,
        elem_id="nk-models",
    )
    with gr.Row(elem_classes="nk-settings"):
        settings = setting_inputs(sample.temperature, sample.top_k, sample.top_p, players[0], desk.limits)
    with gr.Row(elem_classes="nk-actions"):
        go = gr.Button("Write", variant="primary", elem_id="nk-write", scale=0, min_width=150)
        stop = gr.Button("Stop", elem_id="nk-stop", scale=0, min_width=110)
    problem = gr.HTML(elem_id="nk-write-problem", elem_classes="nk-plain", apply_default_css=False)
    shown = gr.HTML(blank(players[:4]), elem_id="nk-panes", elem_classes="nk-plain", apply_default_css=False)

    async def write(
        prompt: Any, names: Any, heat: Any, k: Any, p: Any, seed: Any, tokens: Any, request: gr.Request
    ) -> AsyncIterator[tuple[Any, Any]]:
        values = (heat, k, p, seed, tokens)
        async for update in stream(desk, str(request.session_hash), prompt, names, values):
            yield update

    gr.on(
        [go.click, prompt.submit, *(setting.submit for setting in settings)],
        write,
        [prompt, chosen, *settings],
        [problem, shown],
        concurrency_limit=None,
        show_progress="hidden",
        trigger_mode="multiple",
        api_name="write",
        js=into_view("nk-write", "nk-panes"),
    )

    def end(request: gr.Request) -> None:
        desk.stop(str(request.session_hash))

    stop.click(end, None, None, queue=False, show_progress="hidden", api_visibility="private")
    return prompt, settings


def setting_inputs(
    temperature: float, top_k: int | None, top_p: float | None, first: Player, limits: Limits
) -> list[gr.Number]:
    """The inputs of the settings, in the order of `SETTINGS`.

    They have no bounds: a number that cannot be is refused in a line of ours, not in an error of Gradio's.
    """
    tokens = min(first.run.config.sample.max_new_tokens, limits.tokens)
    return [
        gr.Number(temperature, label="Temperature", step=0.1, min_width=110),
        gr.Number(top_k or 0, label="Top-k (0: off)", precision=0, step=10, min_width=110),
        gr.Number(1.0 if top_p is None else top_p, label="Top-p (1: off)", step=0.05, min_width=110),
        gr.Number(first.run.config.seed, label="Seed", precision=0, min_width=110),
        gr.Number(tokens, label=f"Length (to {limits.tokens})", precision=0, step=50, min_width=110),
    ]


SETTINGS = ("temperature", "top_k", "top_p", "seed", "tokens")


async def stream(
    desk: Desk, session: str, prompt: Any, names: Any, values: tuple[Any, ...]
) -> AsyncIterator[tuple[Any, Any]]:
    """(message, panes) again and again, until every text has ended. If the visitor goes, the texts are dropped.

    A wish that is refused leaves the texts before it as they are, also those in work, and they leave its message.
    """
    try:
        asked = understand(desk.limits, prompt=prompt, **dict(zip(SETTINGS, values, strict=True)))
        players = chosen_players(desk.players, names)
        texts = desk.write(session, players, asked)
    except UserError as error:
        yield message(str(error)), gr.skip()
        return
    said: Any = ""
    try:
        while True:
            over = all(text.ended for text in texts)
            yield said, panes(desk, players, texts, asked)
            said = gr.skip()
            if over:
                return
            await asyncio.sleep(SECONDS_BETWEEN)
    finally:
        desk.leave(session, texts)
