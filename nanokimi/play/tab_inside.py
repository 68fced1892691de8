"""The Look inside tab: what models write, token by token, with what they nearly said and which experts spoke."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import gradio as gr

from nanokimi.errors import UserError
from nanokimi.play.asked import chosen_players, understand
from nanokimi.play.desk import Desk
from nanokimi.play.look import (
    MOST_MODELS,
    MOST_TOKENS,
    NONE,
    Inspector,
    require_lookable,
    wanted_maps,
)
from nanokimi.play.markup import empty, frame, into_view, message
from nanokimi.play.tab_write import SETTINGS

SECONDS_BETWEEN, USUAL_TOKENS = 0.1, 80
BEGIN = empty(
    "Nothing looked at yet", "Choose models and press Look: each token shows how much it surprised them."
)


def build(desk: Desk, prompt: gr.Textbox, settings: Sequence[gr.Number]) -> None:
    """Make the tab. It goes on from the Write tab's prompt and settings, but for the length."""
    players = list(desk.players.values())
    inspector = Inspector(desk.players)
    layers, heads = inspector.most_maps
    for player in players[:MOST_MODELS]:  # while nobody waits for it
        desk.compute(None, partial(inspector.prepare, player))
    text = gr.Textbox(value=prompt.value, label="Beginning", lines=1, max_lines=8, elem_id="nk-look-prompt")
    prompt.change(None, prompt, text, js="(text) => text", api_visibility="private")
    with gr.Row(elem_classes="nk-settings"):
        chosen = gr.CheckboxGroup(
            list(desk.players), value=list(desk.players)[:2], label="Models", min_width=300, scale=3
        )
        length = gr.Number(
            USUAL_TOKENS, label=f"Length (to {MOST_TOKENS})", precision=0, step=20, min_width=120
        )
        layer = gr.Dropdown(
            [NONE, *((f"layer {number}", str(number)) for number in range(layers))],
            value=NONE,
            label="Attention map",
            elem_id="nk-look-layer",
            min_width=130,
        )
        head = gr.Dropdown(["all", *map(str, range(heads))], value="all", label="Head", min_width=110)
    with gr.Row(elem_classes="nk-actions"):
        go = gr.Button("Look", variant="primary", elem_id="nk-look", scale=0, min_width=150)
    problem = gr.HTML(elem_id="nk-look-problem", elem_classes="nk-plain", apply_default_css=False)
    shown = gr.HTML(BEGIN, elem_id="nk-inside", elem_classes="nk-plain", apply_default_css=False)
    temperature, top_k, top_p, seed, _ = settings

    async def look(
        prompt: Any, names: Any, heat: Any, k: Any, p: Any, seed: Any, tokens: Any, layer: Any, head: Any,
        request: gr.Request,
    ) -> AsyncIterator[tuple[Any, Any]]:  # fmt: skip
        session = f"look {request.session_hash}"
        values = (heat, k, p, seed, tokens)
        async for update in looked(desk, inspector, session, prompt, names, values, (layer, head)):
            yield update

    inputs = [text, chosen, temperature, top_k, top_p, seed, length, layer, head]
    looked_at = gr.on(
        [go.click, text.submit, length.submit],
        look,
        inputs,
        [problem, shown],
        concurrency_limit=None,
        show_progress="hidden",
        trigger_mode="multiple",
        api_name="look",
    )
    looked_at.success(None, None, None, js=into_view("nk-look", "nk-inside"), api_visibility="private")


async def looked(
    desk: Desk,
    inspector: Inspector,
    session: str,
    prompt: Any,
    names: Any,
    values: tuple[Any, ...],
    place: tuple[Any, Any],
) -> AsyncIterator[tuple[Any, Any]]:
    """(message, view): a note while it waits, then the view or the reason why there is none.

    What a later wish of the same visitor has replaced says nothing more, or it would wipe what that one says.
    """
    try:
        asked = understand(desk.limits, prompt=prompt, **dict(zip(SETTINGS, values, strict=True)))
        players = chosen_players(desk.players, names)
        require_lookable(players, asked)
        task = desk.compute(session, partial(inspector.page, players, asked, wanted_maps(*place)))
    except UserError as error:
        desk.stop(session)
        yield message(str(error)), gr.skip()
        return
    try:
        said = None
        while not task.ended:
            ahead = desk.ahead(task)
            now = f"Waiting, {ahead} before you." if ahead else "Reading and looking."
            if now != said:
                said = now
                yield message(now, "note"), gr.skip()
            await asyncio.sleep(SECONDS_BETWEEN)
        if task.cancelled:
            return
        if task.error is not None:
            yield message(task.error), gr.skip()
        else:
            names_shown = ", ".join(player.name for player in players)
            yield "", frame(task.result, f"Inside {names_shown}")
    finally:
        desk.leave(session, [task])
