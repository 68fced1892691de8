"""Gradio's Blocks, but for what happens to a call that fails.

Gradio prints a traceback for each call whose values are wrong, so that anyone could fill the terminal. What the page
refuses (`asked`) and what fails while a model computes (`desk`) is shown on the page, so what fails here is a call that
somebody wrote by hand, or a fault of ours, and `complaints` tells the two apart.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from nanokimi.play.complaints import Complaints


class Page(gr.Blocks):  # type: ignore[misc, unused-ignore]
    """Blocks whose failing calls are answered in a sentence, and told on the terminal."""

    def __init__(self, complaints: Complaints, **settings: Any) -> None:
        super().__init__(**settings)
        self.complaints = complaints

    async def process_api(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        """Carry out a call. Raises gradio.Error for every failure: Gradio sends it to the client and prints nothing."""
        try:
            return await super().process_api(*arguments, **named)
        except Exception as error:
            raise gr.Error(self.complaints.say(error), print_exception=False) from None
