"""Windows of token ids: random ones to train on, and windows that score every token of a text exactly once.

Batch i is a pure function of (seed, i): a run that resumes, evaluates more often or trains the other arm sees
the same batches without any generator state to save. Philox (Salmon et al., SC 2011) is built for this: a
counter-based generator whose stream is chosen by key and counter.

Windows to train on are cut anywhere. Windows to score begin where a document begins, right after end-of-text, because
only then does a model see what the document's own probability is conditioned on. Training on cuts does no harm: what
follows end-of-text has the same distribution whether end-of-text is the first token of a window or a later one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

PREFETCHED_TOKENS, PREFETCHED_BATCHES = 1 << 16, 64


class Mixture(NamedTuple):
    """Several texts, one after another in the training ids: where each begins, its tokens, and its share of windows."""

    begins: np.ndarray
    sizes: np.ndarray
    shares: np.ndarray

    def draw(self, generator: np.random.Generator, count: int, context_length: int) -> np.ndarray:
        """Where `count` windows begin: for each a text by the shares, and a place in it.

        A text is never used up. A small one with a large share is only seen more often.
        """
        bounds = np.cumsum(self.shares)[:-1]
        chosen = np.searchsorted(bounds, generator.random(count), side="right")
        return self.begins[chosen] + generator.integers(0, (self.sizes - context_length)[chosen])

    def texts(self, ids: np.ndarray) -> list[np.ndarray]:
        """The ids of each text."""
        return [ids[begin : begin + size] for begin, size in zip(self.begins, self.sizes, strict=True)]


def shared_out(limit: int, sizes: Sequence[int], shares: Sequence[float]) -> list[int]:
    """How much of each text to take, `limit` together: by the shares, and at most all that a text has.

    What a text has too little of is taken from the others, by their shares. If all fit below the limit, all is taken.
    """
    has, share, taken = np.array(sizes), np.array(shares, dtype=float), np.zeros(len(sizes), dtype=np.int64)
    left, others = min(limit, int(has.sum())), np.ones(len(sizes), dtype=bool)
    while True:
        wanted = left * share / share[others].sum()
        whole = others & (has <= wanted)
        if not whole.any():
            break
        taken[whole] = has[whole]
        left, others = left - int(has[whole].sum()), others & ~whole
        if not others.any():
            return [int(count) for count in taken]
    ends = np.cumsum(share[others])
    taken[others] = np.diff(np.rint(left * ends / ends[-1]), prepend=0)
    return [int(count) for count in taken]


def sample_batch(
    ids: np.ndarray,
    *,
    seed: int,
    index: int,
    batch_size: int,
    context_length: int,
    mixture: Mixture | None = None,
    rows: slice = slice(None),
) -> tuple[np.ndarray, np.ndarray]:
    """Return batch `index` of the stream `seed`: int64 inputs and targets, (batch_size, context_length).

    Windows start anywhere, with replacement, as nanoGPT draws them; targets are the inputs one token later. With a
    `mixture`, each window lies in one of its texts. With `rows`, only those of the same batch are read.
    """
    starts = len(ids) - context_length
    if starts < 1:
        raise ValueError(f"{len(ids)} tokens hold no window of {context_length} tokens and a target after it")
    # numpy counts up in the lowest counter word; the index in the highest keeps batches 2^192 draws apart.
    counter = np.array([0, 0, 0, index], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=seed, counter=counter))
    if mixture is None:
        offsets_B = generator.integers(0, starts, size=batch_size)
    else:
        offsets_B = mixture.draw(generator, batch_size, context_length)
    offsets_B = offsets_B[rows]
    windows = ids[offsets_B[:, None] + np.arange(context_length + 1)].astype(np.int64)
    return windows[:, :-1], windows[:, 1:]


@dataclass
class Prefetched:
    """The batches of a stream, several sampled at a time, while code and tables are in the processor's cache."""

    ids: np.ndarray
    seed: int
    batch_size: int
    context_length: int
    mixture: Mixture | None = None
    rows: slice = field(default_factory=lambda: slice(None))
    """Those of each batch that this process trains on."""
    ahead: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def at(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """This process's rows of batch `index`, as `sample_batch` gives them."""
        if index not in self.ahead:
            count = PREFETCHED_TOKENS // (self.batch_size * self.context_length)
            count = min(max(count, 1), PREFETCHED_BATCHES)  # of tiny batches a short run needs only a few
            self.ahead = {i: self._sample(i, self.rows) for i in range(index, index + count)}
        return self.ahead[index]

    def whole(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """All rows of batch `index`."""
        return self._sample(index, slice(None))

    def _sample(self, index: int, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        sizes = {"batch_size": self.batch_size, "context_length": self.context_length}
        return sample_batch(self.ids, seed=self.seed, index=index, mixture=self.mixture, rows=rows, **sizes)


@dataclass(frozen=True)
class Windows:
    """Where a text is scored: window i predicts tokens starts[i] to stops[i], and those from scored[i] on count.

    The tokens before scored[i] are context only. Windows are in the order of the text.
    """

    starts: np.ndarray
    scored: np.ndarray
    stops: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def widths(self) -> np.ndarray:
        """Tokens that a model reads in each window."""
        return self.stops - self.starts

    @property
    def tokens(self) -> np.ndarray:
        """Tokens that each window scores; they sum to the text's."""
        return self.stops - self.scored


def scored_windows(tokens: int, doc_offsets: np.ndarray | None, context_length: int) -> Windows:
    """Windows that score each of `tokens` once.

    A document (see PreparedData.val_doc_offsets) has windows of its own. The first begins at the document's first
    token, so a model knows that it is at a beginning, and its score depends on no other document. A longer document
    continues in windows that each end half a context later and reach back as far as the context allows, so that each
    token has at least half a context before it. One contiguous text (None, or no offsets) is cut into windows that do
    not overlap, of which the last may be shorter.
    """
    if doc_offsets is None or not len(doc_offsets):
        starts = np.arange(0, tokens, context_length)
        return Windows(starts, starts, np.minimum(starts + context_length, tokens))
    offsets = doc_offsets.astype(np.int64)
    begins, ends = offsets[:-1][np.diff(offsets) > 0], offsets[1:][np.diff(offsets) > 0]
    step = (context_length + 1) // 2
    counts = 1 + -(-np.maximum(ends - begins - context_length, 0) // step)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # within its document
    begins, ends = np.repeat(begins, counts), np.repeat(ends, counts)
    stops = np.minimum(begins + context_length + number * step, ends)
    scored = np.where(number == 0, begins, begins + context_length + (number - 1) * step)
    return Windows(np.maximum(begins, stops - context_length), scored, stops)


@dataclass(frozen=True)
class ScoredBatch:
    """Some windows, each padded after its last token to the length of the longest."""

    numbers: np.ndarray
    """Which windows they are."""
    inputs: np.ndarray
    targets: np.ndarray
    counts: np.ndarray
    """(windows, width) bool: which targets count."""


def iterate_validation(
    train_ids: np.ndarray,
    val_ids: np.ndarray,
    context_length: int,
    batch_size: int,
    doc_offsets: np.ndarray | None = None,
) -> Iterator[ScoredBatch]:
    """Yield int64 batches in which each validation token is a target that counts exactly once.

    See scored_windows() for the windows. A batch holds as many tokens as `batch_size` whole windows. Documents'
    windows come longest first, so that neighbours differ little in length and there is little padding; those
    of a contiguous text come in order, and a shorter last one on its own. The first token is predicted from the last of
    `train_ids`, just as every other document's first token is predicted from the end-of-text before it.
    """
    windows = scored_windows(len(val_ids), doc_offsets, context_length)
    widths = windows.widths
    order = np.argsort(-widths, kind="stable")
    is_contiguous = doc_offsets is None or not len(doc_offsets)
    first = 0
    while first < len(order):
        width = int(widths[order[first]])
        last = first + max(batch_size * context_length // width, 1)
        if is_contiguous:
            last = first + min(batch_size, int((widths[order[first:]] == width).sum()))
        yield _cut(train_ids, val_ids, windows, order[first:last], width)
        first = last


def _cut(
    train_ids: np.ndarray, val_ids: np.ndarray, windows: Windows, numbers: np.ndarray, width: int
) -> ScoredBatch:
    """The windows `numbers`, in rows of `width`."""
    places = windows.starts[numbers][:, None] + np.arange(width)
    inside = places < windows.stops[numbers][:, None]
    places = np.where(inside, places, windows.starts[numbers][:, None])
    targets = val_ids[places].astype(np.int64)
    inputs = np.where(places > 0, val_ids[np.maximum(places - 1, 0)], train_ids[-1]).astype(np.int64)
    return ScoredBatch(numbers, inputs, targets, inside & (places >= windows.scored[numbers][:, None]))
