"""The panes of the Write tab: each model's text with its speed and what it keeps, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from nanokimi.play.asked import Asked, command_of
from nanokimi.play.desk import DONE, FAILED, STOPPED, WAITING, WRITING, Desk, Text
from nanokimi.play.markup import empty, message, parameters, shown, swatch
from nanokimi.play.models import Player
from nanokimi.report import units

ENDINGS = {"stop": "the end of the story", "length": "all tokens written"}


def panes(desk: Desk, players: Sequence[Player], texts: Sequence[Text], asked: Asked) -> str:
    """All panes, as they are now."""
    most = max((text.cache_bytes for text in texts), default=0)
    inner = "".join(pane(desk, *one, asked, most) for one in zip(players, texts, strict=True))
    return f'<div class="nk-panes">{inner}</div>{commands(players, texts, asked)}'


def blank(players: Sequence[Player]) -> str:
    """The panes before anything is asked for."""
    said = empty("Nothing written yet", "Type a beginning, or choose one, and press Write.")
    inner = "".join(f"{head(player, '')}{said}</section>" for player in players)
    return f'<div class="nk-panes">{inner}</div>'


def head(player: Player, state: str, *, busy: bool = False) -> str:
    """The open section of a pane with its title."""
    size = parameters(player.cost.params_active, player.cost.params_total)
    return (
        f'<section class="nk-pane" aria-label="{shown(player.name)}" aria-busy="{str(busy).lower()}">'
        f"<header><h3>{swatch(player.slot)}{shown(player.name)}</h3>"
        f'<span class="nk-size">{size}</span><span class="nk-state">{shown(state)}</span></header>'
    )


def pane(desk: Desk, player: Player, text: Text, asked: Asked, most_cache: int) -> str:
    """One model's text."""
    busy = text.state in (WAITING, WRITING)
    if text.state == FAILED:
        return head(player, "") + message(text.error or "") + "</section>"
    caret = '<i class="nk-caret" aria-hidden="true"></i>' if text.state == WRITING else ""
    story = f'<div class="nk-story"><b>{shown(asked.prompt)}</b>{shown(text.text)}{caret}</div>'
    return (
        head(player, state_in_words(desk, text), busy=busy)
        + cut_note(player, text)
        + story
        + numbers(text, player, most_cache)
        + "</section>"
    )


def state_in_words(desk: Desk, text: Text) -> str:
    """What is happening to a text."""
    if text.state == WAITING:
        ahead = desk.ahead(text)
        return f"waiting, {ahead} before you" if ahead else "reading"
    if text.state == DONE:
        return ENDINGS.get(text.reason or "", "done")
    return {WRITING: "writing", STOPPED: "stopped"}[text.state]


def cut_note(player: Player, text: Text) -> str:
    """A note if the model reads only the end of the prompt."""
    tokens = len(text.asked.requests[0].prompt_ids)
    if tokens <= player.context_length:
        return ""
    return message(
        f"The prompt has {tokens:,} tokens; this model reads the last {player.context_length:,}.", "note"
    )


def numbers(text: Text, player: Player, most_cache: int) -> str:
    """Tokens, speed and cache; the bar compares the cache with that of the pane that holds most."""
    speed = text.tokens_per_second
    share = text.cache_bytes / most_cache if most_cache else 0.0
    per_token = player.cost.cache_numbers_per_token * 4
    held = units.size(text.cache_bytes) if text.cache_bytes else "-"
    return (
        '<dl class="nk-numbers">'
        f"<div><dt>tokens</dt><dd>{text.tokens:,}</dd></div>"
        f"<div><dt>tokens per second</dt><dd>{'-' if speed is None else f'{speed:,.0f}'}</dd></div>"
        f'<div class="nk-wide"><dt>cache <small>{per_token:,} bytes per token</small></dt><dd>{held}</dd>'
        f'<span class="nk-bar"><i style="width:{100 * share:.1f}%;background:var(--nk-arm-{player.slot % 8})"></i>'
        "</span></div></dl>"
    )


def commands(players: Sequence[Player], texts: Sequence[Text], asked: Asked) -> str:
    """The commands that write the same, once all texts have ended."""
    ended = [player for player, text in zip(players, texts, strict=True) if text.state == DONE]
    if not ended or any(text.state in (WAITING, WRITING) for text in texts):
        return ""
    lines = "\n".join(shown(command_of(player, asked)) for player in ended)
    return (
        '<details class="nk-fold"><summary>The same text from the command line</summary>'
        f'<pre tabindex="0">{lines}</pre></details>'
    )
