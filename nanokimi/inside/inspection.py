"""What `nanokimi.inspect` returns: a look that a notebook shows, and from which more can be computed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanokimi.errors import UserError
from nanokimi.inside.attention import attention_map
from nanokimi.inside.look import Look
from nanokimi.inside.page import fitted, fitted_page, in_notebook
from nanokimi.inside.subject import Subject
from nanokimi.inside.view import View, Wanted
from nanokimi.runtime.files import cannot_write, write_atomic

MOST_NOTEBOOK_BYTES = 1_500_000
"""A notebook keeps what it shows, so it is given fewer maps of attention than a page."""


@dataclass(frozen=True)
class Inspection:
    """A model, and what it showed while it read and wrote a text."""

    subject: Subject
    view: View

    @property
    def look(self) -> Look:
        """The numbers: `look.tokens`, `look.experts`, `look.max_logits`, `look.cache`."""
        return self.view.look

    def attention(self, layer: int, head: int) -> np.ndarray:
        """How much each token (row) takes from each other one (column), (T, T), counted from 0.

        Raises UserError if there is no such layer or head, or if it does not show its weights.
        """
        found = attention_map(self.subject, self.look.ids, layer, head)
        if found is None:
            raise UserError(
                f"the attention of layer {layer} of {self.look.name} does not show weights over tokens"
            )
        return found.weights_TT

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one page that works offline, of at most 3 MB, and return its path.

        Raises UserError if it exists, or would be larger.
        """
        target = Path(path).expanduser()
        if os.path.lexists(target):
            raise UserError(f"{target} exists, and inspect never overwrites: choose another name")
        _, content = fitted_page([(self.view, self.subject)], Wanted())
        try:
            write_atomic(target, content)
        except OSError as error:
            raise UserError(f"{cannot_write(error, target)}: choose another place") from None
        return target

    def __repr__(self) -> str:
        look = self.look
        mean = "" if look.mean_bits is None else f", {look.mean_bits:.2f} bits per token"
        return f"<Inspection of {look.name}: {len(look.tokens)} tokens{mean}>"

    def _repr_html_(self) -> str:
        return in_notebook(fitted([(self.view, self.subject)], Wanted(), MOST_NOTEBOOK_BYTES))
