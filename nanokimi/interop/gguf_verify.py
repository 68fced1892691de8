"""The receipt of a GGUF file: what gguf's own reader finds in it, and what llama.cpp computes from it.

llama.cpp's result is compared with our model holding the weights as they are stored, so that the bound is about the
computation alone; how far storing them moved the logits is reported beside it. There, activations are rounded, too: to
fp16 or to 8 bits before each product with weights of such a type, and to fp16 within the GELU of `gpt2` in every type.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanokimi.data.store import PreparedData
from nanokimi.data.tokenizers.opening import opening_ids
from nanokimi.data.tokenizers.own import CharTokenizer, Tokenizer, WithEndOfText
from nanokimi.data.tokenizers.words import SPACE_MARK
from nanokimi.errors import TrainingError
from nanokimi.interop.other_program import ask, compare_greedy
from nanokimi.interop.verify import GREEDY_TOKENS, PROMPT_TOKENS, lines_of, windows
from nanokimi.model.build import LanguageModel

PROMPTS, LONGEST_WINDOW = 20, 256
ALLOWED = {
    ("deepseek2", "F32"): 2e-3,
    ("deepseek2", "F16"): 0.01,
    ("deepseek2", "Q8_0"): 0.1,
    ("deepseek2", "Q4_0"): 0.1,
    ("gpt2", "F32"): 2e-3,
    ("gpt2", "F16"): 5e-3,
    ("gpt2", "Q8_0"): 0.05,
    ("gpt2", "Q4_0"): 0.05,
}
"""The largest root mean square of the logits' differences, as a share of their standard deviation."""
SECONDS = 1800


@dataclass(frozen=True)
class GgufReceipt:
    """What was compared, and how far it differed."""

    kind: str
    tensors: int
    stored_error: float
    llama: LlamaReceipt | None

    @property
    def sentences(self) -> list[str]:
        """What the receipt says, for people."""
        exact = {"F32": "exactly the model's", "F16": "exactly the model's, rounded to fp16"}
        error = f"the model's within {self.stored_error:.4f} of the largest number in their block"
        lines = [
            "Read back with gguf's own reader:",
            f"- {self.tensors} tensors are {exact.get(self.kind, error)}",
            "- all metadata and the tokenizer's pieces are as meant",
        ]
        if self.llama is None:
            return [*lines, "Not run in llama.cpp: llama-cpp-python is not installed"]
        return [*lines, *self.llama.sentences]


@dataclass(frozen=True)
class LlamaReceipt:
    """What llama.cpp computed."""

    version: str
    logits: int
    difference: float
    allowed: float
    moved: float
    greedy_tokens: int
    near_ties: int
    lines: int
    lines_that_differ: int

    @property
    def sentences(self) -> list[str]:
        """What the receipt says, for people."""
        ties = f", up to {self.near_ties} ties within the difference of the logits" if self.near_ties else ""
        lines = f"- {self.lines} lines of text have the same ids"
        if self.lines_that_differ:
            lines += f", but for {self.lines_that_differ} with characters that it cannot tell apart or does not have"
        moved = f"; storing the weights moved them by {self.moved:.1e}" if self.moved else ""
        return [
            f"Run in llama.cpp (llama-cpp-python {self.version}):",
            f"- {self.logits:,} logits differ by {self.difference:.1e} of their standard deviation (root mean square; "
            f"allowed: {self.allowed:.0e}){moved}",
            f"- {self.greedy_tokens:,} greedy tokens after {PROMPTS} prompts are equal{ties}",
            lines,
        ]


def has_llama() -> bool:
    """Whether llama-cpp-python is installed."""
    return importlib.util.find_spec("llama_cpp") is not None


def verify_in_llama(
    path: Path,
    models: tuple[LanguageModel, LanguageModel],
    data: PreparedData,
    context: int,
    bound: tuple[str, str],
) -> LlamaReceipt:
    """Run a file in llama.cpp, and compare.

    Args:
        models: the run's, and the same with the weights as they are stored.
        bound: architecture and type, which ALLOWED names.

    Raises:
        TrainingError: it cannot be loaded there, or computes anything else.
    """
    own, hostile = lines_of(data)
    start = min(PROMPT_TOKENS, max(context // 2, 1))
    ids = windows(data, min(context, LONGEST_WINDOW))
    prompts = windows(data, start, PROMPTS)
    request = {
        "path": str(path),
        "context": context,
        "windows": ids.tolist(),
        "prompts": prompts.tolist(),
        "count": min(GREEDY_TOKENS, context - start),
        "lines": [*own, *hostile],
    }
    found = ask_llama(request)
    original, stored = (model.eval() for model in models)
    texts = torch.cat((prompts, torch.from_numpy(found["written"])), dim=1)
    expected, first = (
        np.concatenate((flat(model, ids), flat(model, texts[:, :-1], start - 1)))
        for model in (stored, original)
    )
    size = expected.shape[1]
    theirs = np.concatenate([found[name].reshape(-1, size) for name in ("logits", "written_logits")])
    allowed = ALLOWED[bound]
    difference = relative(theirs, expected)
    if not difference <= allowed:
        raise TrainingError(
            f"llama.cpp gives logits that differ by {difference:.1e} of their standard deviation, where {allowed:.0e} "
            "is allowed: nothing was exported"
        )
    equal, ties = compare_written(found, expected[ids.numel() :])
    wrong = compare_lines(found, own, hostile, data.tokenizer)
    moved = relative(first, expected)
    count = len(own) + len(hostile)
    return LlamaReceipt(llama_version(), expected.size, difference, allowed, moved, equal, ties, count, wrong)


def flat(model: LanguageModel, ids: torch.Tensor, start: int = 0) -> np.ndarray:
    """The logits of all positions from `start` on, (positions of all windows, W)."""
    with torch.inference_mode():
        logits: np.ndarray = model(ids).logits_BTW[:, start:].float().flatten(0, 1).numpy()
    return logits


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """The root mean square of a difference, as a share of the standard deviation."""
    difference = found.astype(np.float64) - expected
    return float(np.sqrt((difference**2).mean()) / max(float(expected.std()), 1e-12))


def llama_version() -> str:
    """The version of llama-cpp-python."""
    from importlib.metadata import version

    return version("llama-cpp-python")


def ask_llama(request: dict[str, Any]) -> dict[str, np.ndarray]:
    """The result of `llama_process` in a process of its own. Raises TrainingError if that fails."""
    return ask("llama_process", request, program="llama.cpp", cannot="run the file", seconds=SECONDS)


def compare_written(found: dict[str, np.ndarray], expected: np.ndarray) -> tuple[int, int]:
    """`compare_greedy`, with ties that are near by the largest difference between the programs' logits at that place.

    It is small where these agree.
    """
    theirs = found["written_logits"]
    ours = expected.reshape(theirs.shape)
    return compare_greedy(found["written"], ours, 2 * np.abs(ours - theirs).max(axis=-1), "llama.cpp")


def compare_lines(
    found: dict[str, np.ndarray], own: list[str], hostile: list[str], tokenizer: Tokenizer
) -> int:
    """How many lines have other ids in llama.cpp. Raises TrainingError for one that the form of the tokenizer can hold.

    A line with the right ids must also be written by their pieces, up to the space that some tokenizers put before it.
    """
    ends, stops = np.cumsum(found["lengths"]), np.cumsum(found["sizes"])
    wrong = 0
    for i, line in enumerate([*own, *hostile]):
        ids = found["ids"][ends[i] - found["lengths"][i] : ends[i]]
        text = found["bytes"][stops[i] - found["sizes"][i] : stops[i]].tobytes()
        same = ids.tolist() == opening_ids(tokenizer, line)
        written = tokenizer.decode(ids[int(tokenizer.start_id is not None) :])
        readable = text.lstrip(b" ") == written.encode().lstrip(b" ")
        if fits(line, tokenizer) and not (same and readable):
            what = "other ids" if not same else "another text back"
            raise TrainingError(
                f"llama.cpp's tokenizer gives {what} for {ascii(line)[:80]}: nothing was exported"
            )
        wrong += not same
    return wrong


def fits(line: str, tokenizer: Tokenizer) -> bool:
    """Whether llama.cpp must give a line our ids: see the table in `gguf_tokenizer` for those that it need not."""
    inner = tokenizer.inner if isinstance(tokenizer, WithEndOfText) else tokenizer
    if isinstance(inner, CharTokenizer):
        return SPACE_MARK not in line and set(line) <= set(inner.characters)
    if inner.name in ("bpe", "unigram", "sentencepiece"):
        if SPACE_MARK in line:
            return False
        return inner.name == "bpe" or line.isascii() and "\0" not in line
    return True
