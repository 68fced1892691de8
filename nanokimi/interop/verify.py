"""The receipt of an export: what is loaded from the new folder computes what the model does.

Logits may differ by rounding. Where two tokens are as likely but for that, a greedy text may go either way; the receipt
says how often it did, and the text is compared up to there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanokimi.data.packed import import_optional
from nanokimi.data.store import PreparedData
from nanokimi.data.tokenizers.opening import opening_ids
from nanokimi.data.tokenizers.own import Tokenizer
from nanokimi.errors import TrainingError
from nanokimi.interop.hostile_text import hostile_lines
from nanokimi.model.build import LanguageModel

LARGEST_DIFFERENCE = 1e-4
GREEDY_TOKENS, PROMPTS, PROMPT_TOKENS, WINDOWS, LINES = 64, 4, 8, 4, 500


@dataclass(frozen=True)
class Receipt:
    """What was compared, and how far it differed."""

    target: str
    logits: int
    logits_difference: float
    greedy_tokens: int
    near_ties: int
    lines: int
    lines_that_differ: int

    @property
    def sentences(self) -> list[str]:
        """What the receipt says, for people."""
        ties = f", up to {self.near_ties} ties within the difference of the logits" if self.near_ties else ""
        lines = f"{self.lines} lines of text have the same ids in its tokenizer"
        if self.lines_that_differ:
            lines += f", but for {self.lines_that_differ} of unusual characters"
        return [
            f"Reloaded with {self.target}:",
            f"- {self.logits:,} logits differ by {self.logits_difference:.1e} at most (fp32; allowed: "
            f"{LARGEST_DIFFERENCE:.0e})",
            f"- {self.greedy_tokens} greedy tokens are equal{ties}",
            f"- {lines}",
        ]


def require_transformers() -> Any:
    """The library transformers, without its progress bars. Raises UserError if it is not installed."""
    transformers = import_optional("transformers", "the check of an export", "export")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def verify_hf_folder(
    folder: Path, model: LanguageModel, data: PreparedData, context_length: int, *, starts: bool = True
) -> Receipt:
    """Load a folder with transformers, and compare. Raises TrainingError if it computes anything else.

    `starts` is what the folder was written with.
    """
    transformers = require_transformers()
    stock = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if hasattr(stock, "set_experts_implementation") and model.config.num_hidden_layers:
        stock.set_experts_implementation("eager")
    target = f"transformers {transformers.__version__} as {type(stock).__name__}"
    model.eval()
    device = next(model.parameters()).device
    ids = windows(data, min(context_length, 256))

    def ours(ids_BT: torch.Tensor) -> torch.Tensor:
        return model(ids_BT.to(device)).logits_BTW.float().cpu()

    def theirs(ids_BT: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = stock(ids_BT).logits
        return logits

    with torch.inference_mode():
        expected, found = ours(ids), theirs(ids)
        difference = float((expected - found).abs().max())
        if expected.shape != found.shape or not difference <= LARGEST_DIFFERENCE:
            raise TrainingError(
                f"{target} gives logits that differ by {difference:.1e}, where {LARGEST_DIFFERENCE:.0e} is allowed: "
                "nothing was exported"
            )
        tokens, ties = compare_greedy(ours, stock, data, context_length, target)
    lines, wrong = compare_ids(transformers.AutoTokenizer.from_pretrained(folder), data, starts=starts)
    return Receipt(target, expected.numel(), difference, tokens, ties, lines, wrong)


def windows(data: PreparedData, length: int, count: int = WINDOWS) -> torch.Tensor:
    """The beginning of the validation text and stretches of it, (count, length)."""
    ids = np.asarray(data.val_ids[: 1 << 20], dtype=np.int64)
    ids = np.resize(ids, max(len(ids), length))
    starts = np.linspace(0, len(ids) - length, count).astype(int)
    return torch.from_numpy(np.stack([ids[start : start + length] for start in starts]))


def compare_greedy(
    ours: Any, stock: Any, data: PreparedData, context_length: int, target: str
) -> tuple[int, int]:
    """(tokens that were compared, prompts that ended at a near-tie) of greedy texts after the validation text.

    Raises TrainingError if one differs, and not by a near-tie.
    """
    start = min(PROMPT_TOKENS, max(context_length // 2, 1))
    count = min(GREEDY_TOKENS, context_length - start)
    compared = ties = 0
    for prompt in windows(data, start):
        written = stock.generate(
            prompt[None],
            attention_mask=torch.ones_like(prompt)[None],
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0]
        logits_TW = ours(written[None])[0, start - 1 : -1]
        chosen_T = written[start:]
        best_T = logits_TW.max(dim=-1).values
        gap_T = best_T - logits_TW.gather(1, chosen_T[:, None])[:, 0]
        other_T = (logits_TW.argmax(dim=-1) != chosen_T).nonzero().flatten()
        equal = int(other_T[0]) if len(other_T) else len(chosen_T)
        compared += equal
        if equal < len(chosen_T):
            ties += 1
            if float(gap_T[equal]) > 2 * LARGEST_DIFFERENCE:
                raise TrainingError(
                    f"{target} writes another text after {equal} tokens: nothing was exported"
                )
    return compared, ties


def compare_ids(fast: Any, data: PreparedData, *, starts: bool = True) -> tuple[int, int]:
    """(lines that were compared, lines of hostile text that differ) of the exported tokenizer and ours.

    With `starts` both begin a line as a document begins.

    Raises TrainingError if the id of end-of-text differs, or ids differ on the run's own text or, but for SentencePiece
    models made elsewhere, at all.
    """
    tokenizer: Tokenizer = data.tokenizer
    own, hostile = lines_of(data)

    def ours(line: str) -> list[int]:
        return opening_ids(tokenizer, line) if starts else tokenizer.encode(line).tolist()

    def wrong(lines: list[str]) -> list[str]:
        pairs = zip(lines, fast(lines)["input_ids"] if lines else [], strict=True)
        return [line for line, ids in pairs if ours(line) != ids]

    if fast.eos_token_id != tokenizer.end_of_text_id:
        raise TrainingError("the exported tokenizer has another id for end-of-text: nothing was exported")
    bad, unusual = wrong(own), wrong(hostile)
    if bad or (unusual and tokenizer.name != "sentencepiece"):
        shown = ascii((bad or unusual)[0])[:80]
        raise TrainingError(f"the exported tokenizer gives other ids for {shown}: nothing was exported")
    return len(own) + len(hostile), len(unusual)


def lines_of(data: PreparedData) -> tuple[list[str], list[str]]:
    """Lines of the run's text, and hostile ones, that its tokenizer can encode."""
    text = data.tokenizer.decode(data.val_ids[:20_000])
    own = [line for line in text.split("\n")[:LINES] if line]
    return encodable(own, data.tokenizer), encodable(hostile_lines(LINES, 0, text), data.tokenizer)


def encodable(lines: list[str], tokenizer: Tokenizer) -> list[str]:
    """The lines that a tokenizer made elsewhere can encode: some know only their own characters."""
    kept = []
    for line in lines:
        try:
            tokenizer.encode(line)
        except ValueError:
            continue
        kept.append(line)
    return kept
