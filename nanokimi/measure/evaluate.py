"""How a model is scored: on the whole validation or test text, every token a target exactly once, in fp32."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nanokimi.data.batches import Windows, iterate_validation, scored_windows
from nanokimi.data.store import PreparedData

TOKENS_AT_A_TIME = 4096
SCORES = ("loss", "perplexity", "bits_per_byte", "bits_per_char")
"""The fields of an Evaluation that records hold under the name of its part, such as test_loss."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one part of the text, and each window's loss, for paired comparisons."""

    part: str  # val or test
    loss: float  # nats per token
    perplexity: float
    bits_per_byte: float
    bits_per_char: float
    loss_by_position: list[float]  # mean nats of the targets at each position of the window
    window_nats: np.ndarray  # (windows,) total nats of each window's targets, in the order of the text
    window_tokens: np.ndarray  # (windows,) number of each window's targets
    tokens_by_position: list[int]  # how many targets each of those means is of
    sources: dict[str, dict[str, float]] = field(default_factory=dict)  # of a mixture, each text's own scores

    def record(self) -> dict[str, Any]:
        """The fields of metrics.jsonl and result.json: val_loss, ..., or test_loss, ...; of a mixture, val_sources."""
        scores: dict[str, Any] = {f"{self.part}_{name}": getattr(self, name) for name in SCORES}
        if self.sources:
            scores[f"{self.part}_sources"] = self.sources
        return {**scores, "loss_by_position": self.loss_by_position}


class Cancelled(Exception):
    """The evaluation was asked to stop before its end."""


def windows_at_a_time(context_length: int) -> int:
    """Windows per forward pass, if none are configured."""
    return max(TOKENS_AT_A_TIME // context_length, 1)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    data: PreparedData,
    context_length: int,
    batch_size: int | None = None,
    *,
    part: str = "val",
    cancelled: Callable[[], bool] | None = None,
) -> Evaluation:
    """Score `model` on the whole of a part, val or test, in windows of `context_length` (see data.batches).

    Bits per byte and per character divide the total by the UTF-8 bytes and characters of the raw text, so they do not
    depend on the tokenizer. Between documents, end-of-text is a target like any other. Its nats count in the total, and
    it adds no bytes. `batch_size` affects only speed and memory; None takes TOKENS_AT_A_TIME tokens at a time.

    Raises Cancelled once `cancelled`, which is called before each batch, returns True; UserError without a test part.
    """
    scored = data.scored(part)
    batch_size = batch_size or windows_at_a_time(context_length)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    windows = scored_windows(len(scored.ids), scored.doc_offsets, context_length)
    window_tokens = windows.tokens
    window_nats = np.zeros(len(window_tokens))
    sums_T = np.zeros(context_length)
    counts_T = np.zeros(context_length, dtype=np.int64)
    try:
        for batch in iterate_validation(
            scored.before_ids, scored.ids, context_length, batch_size, scored.doc_offsets
        ):
            if cancelled is not None and cancelled():
                raise Cancelled
            inputs_BT = torch.from_numpy(batch.inputs).to(device)
            targets_BT = torch.from_numpy(batch.targets).to(device)
            nats_BT = token_nats(model, inputs_BT, targets_BT).cpu().double().numpy()
            nats_BT = np.where(batch.counts, nats_BT, 0.0)
            width = nats_BT.shape[1]
            sums_T[:width] += nats_BT.sum(axis=0)
            counts_T[:width] += batch.counts.sum(axis=0)
            window_nats[batch.numbers] = nats_BT.sum(axis=1)
    finally:
        model.train(was_training)
    total_nats, tokens = float(sums_T.sum()), int(counts_T.sum())
    assert tokens == len(scored.ids), "every token of the part is a target exactly once"
    loss = total_nats / tokens
    return Evaluation(
        part=part,
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),
        bits_per_byte=total_nats / math.log(2) / data.metadata[f"{part}_text_bytes"],
        bits_per_char=total_nats / math.log(2) / data.metadata[f"{part}_text_chars"],
        loss_by_position=[float(x) for x in sums_T[counts_T > 0] / counts_T[counts_T > 0]],
        window_nats=window_nats,
        window_tokens=window_tokens,
        tokens_by_position=[int(count) for count in counts_T if count],
        sources=scores_by_source(data.sources, part, windows, window_nats),
    )


def scores_by_source(
    sources: Sequence[dict[str, Any]], part: str, windows: Windows, window_nats: np.ndarray
) -> dict[str, dict[str, float]]:
    """Each text's tokens, loss (nats per token), bits per byte and per character; empty if there is one text.

    Every window lies in one text, because it lies in one document.
    """
    ends = np.cumsum([one[f"{part}_tokens"] for one in sources])
    owners = np.searchsorted(ends, windows.starts, side="right")
    found = {}
    for number, one in enumerate(sources):
        nats = float(window_nats[owners == number].sum())
        tokens = int(windows.tokens[owners == number].sum())
        assert tokens == one[f"{part}_tokens"], "the windows of a text score all of it"
        found[one["name"]] = {
            "tokens": tokens,
            "loss": nats / tokens,
            "bits_per_byte": nats / math.log(2) / one[f"{part}_text_bytes"],
            "bits_per_char": nats / math.log(2) / one[f"{part}_text_chars"],
        }
    return found


def token_nats(model: nn.Module, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of every target, (B, T), in fp32 with autocast off."""
    with torch.autocast(inputs_BT.device.type, enabled=False):
        logits_BTW = model(inputs_BT).logits_BTW.float()
    return F.cross_entropy(logits_BTW.transpose(1, 2), targets_BT, reduction="none")
