"""A summary of prepared data: a few lines of text and one picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nanokimi.data.parts import PARTS, split_note
from nanokimi.data.store import PreparedData
from nanokimi.data.tokenizers.own import Tokenizer
from nanokimi.runtime.drawing import drawing, png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PART_NAMES = ("train", "validation", "test")
CUTS = {
    "three": "training, then validation, its end for test",
    "nanogpt": "its last part is both for validation and test",
}
BAR = 40
BLOCK_TOKENS = 1 << 22


def summary_text(data: PreparedData) -> str:
    """Documents, duplicates, sizes and the lengths of documents, for a terminal."""
    metadata = data.metadata
    rows = [("data", metadata["path"])]
    if metadata["contiguous"]:
        rows += [("documents", f"1 (a single text: {CUTS[metadata['split']]})")]
    else:
        rows += [("documents", sizes(metadata, "documents"))]
        rows += [("removed", removed(metadata))]
        rows += [("duplicates kept", kept(metadata))]
    rows += [(unit, sizes(metadata, f"text_{unit}")) for unit in ("bytes", "chars")]
    rows += [("tokens", sizes(metadata, "tokens"))]
    rows += [(one["name"], source_words(one)) for one in data.sources]
    rows += [("note", note) for note in metadata.get("notes", ())]
    if note := split_note(metadata):
        rows += [("beware", note)]
    if metadata.get("split_widened"):
        rows += [
            (
                "few documents",
                "validation and test were given the nearest hashes; more documents may move them",
            )
        ]
    rows += [("vocabulary", f"{metadata['vocab_size']:,} ({metadata['tokenizer']})")]
    rows += [("bytes per token", f"{metadata['bytes_per_token']:.3f} (validation)")]
    if "test_floor_nats" in metadata:
        floor = metadata["test_floor_nats"] / metadata["test_tokens"]
        rows += [("floor", f"{floor:.4f} nats per test token: no model can be expected to do better")]
    if "changed_by_tokenizer" in metadata:
        changed, units = metadata["changed_by_tokenizer"], metadata["units_encoded"]
        rows += [("not lossless", f"{changed:,} of {units:,} texts come back changed")]
    text = "\n".join(f"{name:<16} {value}" for name, value in rows) + "\n"
    lengths = document_lengths(data)
    return text + ("\ntokens per document\n" + histogram(lengths) if len(lengths) else "")


def source_words(one: dict[str, Any]) -> str:
    """One text of a mixture: its share of the training tokens, its size, and when training has seen all of it once."""
    once = one["train_tokens"] / one["share"]
    return (
        f"{one['share']:.1%} of the training tokens, out of {one['train_tokens']:,} of its own (repeated after about "
        f"{once:,.0f} of all); {one['val_tokens']:,} validation, {one['test_tokens']:,} test"
    )


def sizes(metadata: dict[str, Any], of: str) -> str:
    """The sizes of the parts, in words."""
    numbers = [metadata[f"{part}_{of}"] for part in PARTS]
    shown = ["not counted" if number is None else f"{number:,}" for number in numbers]
    return ", ".join(f"{number} {name}" for number, name in zip(shown, PART_NAMES, strict=True))


def removed(metadata: dict[str, Any]) -> str:
    """How many documents were removed, in words."""
    exact, near = metadata["exact_duplicates_across_split"], metadata["near_duplicates_across_split"]
    text = f"{exact:,} exact and {near:,} near duplicates of validation and test documents, from the training part"
    exact, near = metadata["exact_duplicates_of_test_in_val"], metadata["near_duplicates_of_test_in_val"]
    text += f"; {exact:,} and {near:,} of test documents, from the validation part"
    text += f"; {metadata['documents_empty']:,} empty"
    return text + (f"; {metadata['documents_left_out']:,} left out" if metadata["documents_left_out"] else "")


def kept(metadata: dict[str, Any]) -> str:
    """How many documents of each part repeat another one of it, in words."""
    numbers = [
        f"{metadata[f'duplicates_in_{part}']:,} {name}" for part, name in zip(PARTS, PART_NAMES, strict=True)
    ]
    return f"{', '.join(numbers)} (exact, within their part)"


def document_lengths(data: PreparedData) -> np.ndarray:
    """Tokens of every document, end-of-text included; empty for one contiguous text."""
    offsets = (data.train_doc_offsets, data.val_doc_offsets, data.test_doc_offsets)
    return np.concatenate([np.diff(part.astype(np.int64)) for part in offsets])


def histogram(lengths: np.ndarray) -> str:
    """One line for each doubling of length, with a bar."""
    bins = np.log2(np.maximum(lengths, 1)).astype(int)
    counts = np.bincount(bins)
    lines = []
    for power in range(int(bins.min()), len(counts)):
        bar = "#" * round(BAR * counts[power] / counts.max())
        span = f"{2**power:,} to {2 ** (power + 1) - 1:,}"
        lines.append(f"{span:>24}  {bar:<{BAR}} {counts[power]:,}")
    return "\n".join(lines) + "\n"


def token_counts(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """How often each id occurs, a block at a time."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(ids), BLOCK_TOKENS):
        counts += np.bincount(ids[start : start + BLOCK_TOKENS], minlength=vocab_size)
    return counts


def bytes_of_ids(tokenizer: Tokenizer) -> np.ndarray:
    """UTF-8 bytes that each id stands for on its own; part of a character counts as one byte, end-of-text as none."""
    texts = [tokenizer.decode([number]) for number in range(tokenizer.vocab_size)]
    sizes = np.array([1 if text == "\ufffd" else len(text.encode("utf-8")) for text in texts])
    if tokenizer.end_of_text_id is not None:
        sizes[tokenizer.end_of_text_id] = 0
    return sizes


def draw_summary(data: PreparedData, path: Path) -> None:
    """Write the picture: the parts, lengths of documents, frequency of tokens by rank, bytes per token.

    A single text has no lengths of documents, and then that panel is left out.
    """
    lengths = document_lengths(data)
    counts = token_counts(data.train_ids, data.tokenizer.vocab_size)
    with drawing():
        from matplotlib.figure import Figure

        widths = (1, 2, 2, 2) if len(lengths) else (1, 2, 2)
        figure = Figure(figsize=(2.15 * sum(widths), 3.8), layout="constrained")
        parts, *documents, ranks, by_bytes = figure.subplots(1, len(widths), width_ratios=widths)
        draw_parts(parts, [data.metadata[f"{part}_tokens"] for part in PARTS])
        for axes in documents:
            draw_lengths(axes, lengths)
        draw_ranks(ranks, counts)
        draw_bytes(by_bytes, counts, bytes_of_ids(data.tokenizer))
        path.write_bytes(png_of(figure, dpi=120))


def draw_parts(axes: Axes, tokens: list[int]) -> None:
    """Draw the tokens of each part, with its share of all."""
    bars = axes.bar(PART_NAMES, tokens, color=["#3b6ea8", "#d98e04", "#b03a48"])
    axes.bar_label(bars, [f"{count / sum(tokens):.1%}" for count in tokens])
    axes.set(title="tokens of each part", ylabel="tokens")
    axes.margins(y=0.12)
    axes.tick_params(axis="x", labelrotation=30)


def draw_lengths(axes: Axes, lengths: np.ndarray) -> None:
    """Draw how many documents have which length."""
    edges = np.unique(np.geomspace(max(lengths.min(), 1), lengths.max() + 1, 40).astype(int))
    axes.hist(lengths, bins=edges.tolist() if len(edges) > 1 else 1, color="#3b6ea8")
    scale = "log" if lengths.max() > 20 * lengths.min() else "linear"
    axes.set(title="length of documents", xlabel="tokens", ylabel="documents", xscale=scale)


def draw_ranks(axes: Axes, counts: np.ndarray) -> None:
    """Draw how frequent the most frequent token is, the next one, and so on. Marks keep a few tokens visible."""
    found = np.sort(counts[counts > 0])[::-1]
    marker = "o" if len(found) < 100 else None
    axes.loglog(
        np.arange(1, len(found) + 1), found / found.sum(), color="#3b6ea8", marker=marker, markersize=3
    )
    unused = int((counts == 0).sum())
    axes.set(
        title=f"tokens by rank ({unused:,} never occur)", xlabel="rank", ylabel="part of training tokens"
    )


def draw_bytes(axes: Axes, counts: np.ndarray, of_id: np.ndarray) -> None:
    """Draw the share of tokens that stand for one byte, for two, and so on."""
    from matplotlib.ticker import MaxNLocator

    by_size = np.bincount(of_id, weights=counts)
    mean = float((of_id * counts).sum() / counts.sum())
    axes.bar(np.arange(len(by_size)), by_size / counts.sum(), color="#3b6ea8")
    axes.set(title=f"bytes per token (mean {mean:.2f})", xlabel="bytes", ylabel="part of training tokens")
    axes.set_xlim(-0.5, min(len(by_size), 24) - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # a byte is not divided
