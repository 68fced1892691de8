"""Windows of token ids: random ones to train on, and every validation token exactly once to score.

Batch i is a pure function of (seed, i): a run that resumes, evaluates more often or trains the other arm sees
the same batches without any generator state to save. Philox (Salmon et al., SC 2011) is built for this: a
counter-based generator whose stream is chosen by key and counter.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def sample_batch(
    ids: np.ndarray, *, seed: int, index: int, batch_size: int, context_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return batch `index` of the stream `seed`: int64 inputs and targets, (batch_size, context_length).

    Windows start anywhere, with replacement, as nanoGPT draws them; targets are the inputs one token later.
    """
    starts = len(ids) - context_length
    if starts < 1:
        raise ValueError(f"{len(ids)} tokens hold no window of {context_length} tokens and a target after it")
    # numpy counts up in the lowest counter word; the index in the highest keeps batches 2^192 draws apart.
    counter = np.array([0, 0, 0, index], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=seed, counter=counter))
    offsets_B = generator.integers(0, starts, size=batch_size)
    windows = ids[offsets_B[:, None] + np.arange(context_length + 1)].astype(np.int64)
    return windows[:, :-1], windows[:, 1:]


def iterate_validation(
    train_ids: np.ndarray, val_ids: np.ndarray, context_length: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield int64 (inputs, targets) that make each validation token a target once, in order.

    Windows of `context_length` do not overlap and come `batch_size` at a time; what is left over is one
    shorter window of its own, shape (1, rest). The first token is predicted from the last training token.
    """
    full = len(val_ids) // context_length
    for window in range(0, full, batch_size):
        stop = min(window + batch_size, full)
        inputs, targets = _shifted(train_ids, val_ids, window * context_length, stop * context_length)
        yield inputs.reshape(-1, context_length), targets.reshape(-1, context_length)
    if full * context_length < len(val_ids):
        inputs, targets = _shifted(train_ids, val_ids, full * context_length, len(val_ids))
        yield inputs[None], targets[None]


def _shifted(
    train_ids: np.ndarray, val_ids: np.ndarray, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Validation tokens start to stop as targets, and the token before each of them as input."""
    before = train_ids[-1:] if start == 0 else val_ids[start - 1 : start]
    tokens = np.concatenate([before, val_ids[start:stop]]).astype(np.int64)
    return tokens[:-1], tokens[1:]
