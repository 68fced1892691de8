"""The receipt of a hand-over to torchtitan: what it builds and loads from the new folder computes what the model does.

On a CPU, torchtitan can build and run the model, but its trainer wants GPUs: the launch line itself is not tried.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanokimi.data.store import PreparedData
from nanokimi.errors import TrainingError
from nanokimi.interop.other_program import ask, compare_greedy
from nanokimi.interop.verify import (
    GREEDY_TOKENS,
    LARGEST_DIFFERENCE,
    PROMPT_TOKENS,
    PROMPTS,
    Receipt,
    lines_of,
    windows,
)
from nanokimi.model.build import LanguageModel

LONGEST_WINDOW = 256
SECONDS = 1800


@dataclass(frozen=True)
class TitanReceipt:
    """What torchtitan computed, and how far it differed."""

    version: str
    logits: int
    logits_difference: float
    rounding: float
    greedy_tokens: int
    near_ties: int
    lines: int
    lines_that_differ: int

    @property
    def sentences(self) -> list[str]:
        """What the receipt says, for people."""
        ties = f", up to {self.near_ties} ties within the difference of the logits" if self.near_ties else ""
        lines = f"- {self.lines} lines of text have the same ids in its tokenizer"
        if self.lines_that_differ:
            lines += (
                f", but for {self.lines_that_differ} with unusual characters or the text of a special token, which is "
                "that token there"
            )
        rounding = (
            f"; rounding the experts to bf16, as it does, moves them by up to {self.rounding:.1e}"
            if self.rounding > 2 * LARGEST_DIFFERENCE
            else ""
        )
        return [
            f"Built by torchtitan {self.version} from the flavor file, and loaded by its checkpointer:",
            f"- {self.logits:,} logits differ by {self.logits_difference:.1e} at most (fp32; allowed: "
            f"{LARGEST_DIFFERENCE:.0e}){rounding}",
            f"- {self.greedy_tokens} greedy tokens are equal{ties}",
            lines,
        ]


@dataclass(frozen=True)
class HandOverReceipt:
    """What transformers and torchtitan find in the folder; None: torchtitan is not installed."""

    stock: Receipt
    titan: TitanReceipt | None

    @property
    def sentences(self) -> list[str]:
        """What the receipt says, for people."""
        if self.titan is None:
            return [
                *self.stock.sentences,
                "Not verified in torchtitan, which is not installed: pip install torchtitan",
            ]
        return [*self.stock.sentences, *self.titan.sentences]


def has_torchtitan() -> bool:
    """Whether torchtitan is installed."""
    return importlib.util.find_spec("torchtitan") is not None


def verify_in_torchtitan(
    folder: Path, model: LanguageModel, data: PreparedData, context: int
) -> TitanReceipt:
    """Build the model of a folder in torchtitan, and compare.

    Raises TrainingError if torchtitan cannot load it, or computes anything else.
    """
    own, hostile = lines_of(data)
    start = min(PROMPT_TOKENS, max(context // 2, 1))
    ids, prompts = windows(data, min(context, LONGEST_WINDOW)), windows(data, start, PROMPTS)
    request = {
        "folder": str(folder.resolve()),
        "windows": ids.tolist(),
        "prompts": prompts.tolist(),
        "count": min(GREEDY_TOKENS, context - start),
        "lines": [*own, *hostile],
    }
    found = ask_torchtitan(request)
    model.eval()
    texts = torch.cat((prompts, torch.from_numpy(found["written"])), dim=1)
    with torch.inference_mode():
        expected = model(ids).logits_BTW.float().numpy()
        chosen = model(texts[:, :-1]).logits_BTW[:, start - 1 :].float().numpy()
    difference = largest(found["logits"], expected)
    if not difference <= LARGEST_DIFFERENCE:
        raise TrainingError(
            f"torchtitan gives logits that differ by {difference:.1e}, where {LARGEST_DIFFERENCE:.0e} is allowed: "
            "nothing was exported"
        )
    equal, ties = compare_written(found["written"], chosen)
    wrong = compare_lines(found, own, hostile, data)
    rounding = largest(found["rounded_logits"], expected)
    return TitanReceipt(
        titan_version(), expected.size, difference, rounding, equal, ties, len(own) + len(hostile), wrong
    )


def titan_version() -> str:
    """The version of torchtitan."""
    return version("torchtitan")


def largest(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference; infinity for another shape."""
    return float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")


def ask_torchtitan(request: dict[str, Any]) -> dict[str, np.ndarray]:
    """The result of `torchtitan_process` in a process of its own. Raises TrainingError if that fails."""
    return ask("torchtitan_process", request, program="torchtitan", cannot="load the folder", seconds=SECONDS)


def compare_written(written: np.ndarray, ours: np.ndarray) -> tuple[int, int]:
    """`compare_greedy`, with ties that are near by the largest difference that the logits may have."""
    return compare_greedy(written, ours, np.full(written.shape, 2 * LARGEST_DIFFERENCE), "torchtitan")


def compare_lines(
    found: dict[str, np.ndarray], own: list[str], hostile: list[str], data: PreparedData
) -> int:
    """How many lines have other ids in torchtitan's tokenizer.

    There, a line that holds the text of a special token holds that token. Raises TrainingError for any other line that
    differs, but for hostile ones of SentencePiece models made elsewhere, and for another id of end-of-text.
    """
    tokenizer = data.tokenizer
    if found["end"].tolist() != ([] if tokenizer.end_of_text_id is None else [tokenizer.end_of_text_id]):
        raise TrainingError("torchtitan's tokenizer has another id for end-of-text: nothing was exported")
    ends = np.cumsum(found["lengths"])
    wrong = 0
    for i, line in enumerate([*own, *hostile]):
        ids = found["ids"][ends[i] - found["lengths"][i] : ends[i]].tolist()
        if ids == tokenizer.encode(line).tolist():
            continue
        wrong += 1
        foreign = tokenizer.name == "sentencepiece" and i >= len(own)
        if not foreign and not any(text in line for text in found["special"].tolist()):
            raise TrainingError(
                f"torchtitan's tokenizer gives other ids for {ascii(line)[:80]}: nothing was exported"
            )
    return wrong
