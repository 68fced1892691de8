"""The audit's inputs: rows of ids, and the same rows with other tokens from some position on.

A probe is two batches of one shape, with a cut for each row. Before the cut, the tokens of both batches are equal, so
the logits must be equal, too. Each row has its own cut, so that one forward pass tests many cuts. Other rows change at
the same time, deliberately, because they must have no effect either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

ROW_KINDS = ("real", "random", "few", "runs", "real", "repeated", "random", "echo", "constant")
WINDOWS_KEPT = 64
SHORT_TOKENS = 512  # at most, in a batch that tries another length
GOLDEN = (5**0.5 - 1) / 2  # the shares of its multiples lie close together everywhere


@dataclass(frozen=True)
class Probe:
    """Two inputs that agree before `cut_B` in each row."""

    base_BT: torch.Tensor
    changed_BT: torch.Tensor
    cut_B: torch.Tensor
    before: tuple[torch.Tensor, ...] = ()
    """Inputs of earlier calls, before the base."""
    before_changed: tuple[torch.Tensor, ...] = ()
    """Inputs of as many earlier calls, before the changed input."""
    filled: bool = False
    """Whether parameters that are all zero are replaced."""
    in_turn: bool = False
    """Whether each row is a call of its own, one after another of the same copy."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, length) of each of its calls."""
        rows, length = self.base_BT.shape
        return (1 if self.in_turn else rows), length

    def protected_BT(self) -> torch.Tensor:
        """Positions whose logits must not move."""
        return torch.arange(self.base_BT.shape[1]) < self.cut_B[:, None]


@dataclass
class Source:
    """The source of ids: real windows, if there are any, and seeded random numbers."""

    vocab_size: int
    generator: torch.Generator
    windows: Sequence[torch.Tensor] = ()
    deck_W: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    """The remaining ids of a random permutation."""

    def draw(self, count: int) -> torch.Tensor:
        """The next `count` ids of random permutations of the vocabulary, so that no id repeats before all have come."""
        while len(self.deck_W) < count:
            more_W = torch.randperm(self.vocab_size, generator=self.generator)
            self.deck_W = torch.cat((self.deck_W, more_W))
        drawn, self.deck_W = self.deck_W[:count], self.deck_W[count:]
        return drawn

    def below(self, limit: int, *shape: int) -> torch.Tensor:
        """Random whole numbers below `limit`."""
        return torch.randint(limit, shape, generator=self.generator)

    def real_row(self, length: int) -> torch.Tensor:
        """A stretch of a real window, or a random row if no window is long enough."""
        long_enough = [window for window in self.windows if len(window) >= length]
        if not long_enough:
            return self.below(self.vocab_size, length)
        window = long_enough[int(self.below(len(long_enough), 1))]
        start = int(self.below(len(window) - length + 1, 1))
        return window[start : start + length]

    def row(self, kind: str, length: int) -> torch.Tensor:
        """A row of one of ROW_KINDS except "repeated", which is made by `mixed`."""
        W = self.vocab_size
        if kind == "real":
            return self.real_row(length)
        if kind == "few":
            return self.below(W, 3)[self.below(3, length)]
        if kind == "runs":
            return self.below(W, length).repeat_interleave(1 + self.below(4, length))[:length]
        if kind == "echo":
            return self.real_row((length + 1) // 2).repeat(2)[:length]
        return self.below(W, 1).expand(length) if kind == "constant" else self.below(W, length)

    def mixed(self, rows: int, length: int) -> torch.Tensor:
        """Rows of all kinds in turn, from a random kind on. A repeated row is equal to the row above it."""
        first = int(self.below(len(ROW_KINDS), 1))
        found: list[torch.Tensor] = []
        for number in range(rows):
            kind = ROW_KINDS[(first + number) % len(ROW_KINDS)]
            found.append(found[-1] if kind == "repeated" and found else self.row(kind, length))
        mixed_BT = torch.stack(found)
        begun_B = self.below(5, rows)  # some begin with the first or the last id, as texts often do
        mixed_BT[begun_B == 0, 0], mixed_BT[begun_B == 1, 0] = 0, self.vocab_size - 1
        return mixed_BT

    def change(self, base_BT: torch.Tensor, cut_B: torch.Tensor) -> torch.Tensor:
        """The rows with other tokens from their cuts on. The token at the cut always differs.

        In one row of five, only that token differs. In one of four, it becomes an earlier token of the row, mostly the
        one before it. In the others, it is the next of a permutation of the vocabulary.
        """
        B, T = base_BT.shape
        place_BT = torch.arange(T).expand(B, T)
        future_BT = (base_BT + 1 + self.below(self.vocab_size - 1, B, T)) % self.vocab_size
        alone_B1 = self.below(5, B, 1) == 0
        kept_BT = (place_BT < cut_B[:, None]) | (alone_B1 & (place_BT > cut_B[:, None]))
        changed_BT = torch.where(kept_BT, base_BT, future_BT)
        at_B1 = cut_B.clamp(max=T - 1)[:, None]
        back_B = torch.where(self.below(2, B) == 0, 1, 1 + self.below(T, B))
        earlier_B = base_BT.gather(1, (at_B1 - back_B[:, None]).clamp(min=0))[:, 0]
        next_B = torch.where(self.below(4, B) == 0, earlier_B, self.draw(B))
        wanted_B = (cut_B < T) & (next_B != base_BT.gather(1, at_B1)[:, 0])
        rows = wanted_B.nonzero()[:, 0]
        changed_BT[rows, cut_B[rows]] = next_B[rows]
        return changed_BT

    def probe(self, base_BT: torch.Tensor, cut_B: torch.Tensor, filled: bool = False) -> Probe:
        """A probe of the base and its `change`."""
        return Probe(base_BT, self.change(base_BT, cut_B), cut_B, filled=filled)

    def cuts(self, rows: int, length: int) -> torch.Tensor:
        """A cut for each row, in turn, so that enough rows have all of them."""
        first = int(self.below(length - 1, 1))
        return 1 + (first + torch.arange(rows)) % (length - 1)

    def other_rows(self, base_BT: torch.Tensor) -> Probe:
        """A probe that changes a random half of the rows and protects the others."""
        B, T = base_BT.shape
        gone_B = torch.randperm(B, generator=self.generator) < max(B // 2, 1)
        return self.probe(base_BT, torch.where(gone_B, 0, T))


def main_probes(
    source: Source, rows: int, length: int, cuts: Sequence[int], structured: int
) -> Iterator[Probe]:
    """Every cut in batches of all kinds of rows, then `structured` rows that are equal, or of one or two tokens."""
    base_BT = source.mixed(rows, length)
    order = torch.tensor(cuts)[torch.randperm(len(cuts), generator=source.generator)]
    batches = max(-(-len(cuts) // rows), 4)
    for batch in range(batches):
        yield source.probe(base_BT, order[(batch * rows + torch.arange(rows)) % len(order)])
    for _ in range(2):
        yield source.other_rows(base_BT)
    same_BT = source.real_row(length).expand(structured, length)
    constant_BT = source.below(source.vocab_size, 1).expand(structured, length)
    two_BT = source.below(source.vocab_size, 2)[source.below(2, structured, length)]
    for base_BT in (same_BT, constant_BT, two_BT):
        yield source.probe(base_BT, source.cuts(structured, length))
        yield source.other_rows(base_BT)


def shape_probes(source: Source, shapes: Sequence[tuple[int, int]], other_rows: bool) -> Iterator[Probe]:
    """Probes of each shape (rows, length)."""
    for rows, length in shapes:
        base_BT = source.mixed(rows, length)
        yield source.probe(base_BT, source.cuts(rows, length))
        if rows > 1 and other_rows:
            yield source.other_rows(base_BT)


def sweep_probes(source: Source, ids: torch.Tensor, context: int, tokens: int) -> Iterator[Probe]:
    """Each of `ids` once as the last protected token and once as the token after it, in short windows."""
    length = min(4, context)
    cut = length // 2
    following = ids[torch.randperm(len(ids), generator=source.generator)]
    rows = max(tokens // length, 1)
    for start in range(0, len(ids), rows):
        some = ids[start : start + rows]
        base_BT = source.below(source.vocab_size, len(some), length)
        base_BT[:, cut - 1], base_BT[:, cut] = some, following[start : start + rows]
        yield source.probe(base_BT, torch.full((len(some),), cut))


def pair_probes(source: Source, pairs_P2: torch.Tensor, context: int, tokens: int) -> Iterator[Probe]:
    """Each pair of neighbours, and the same first token with another second one, in windows of two or three."""
    length = min(3, context)
    cut = length - 1
    rows = max(tokens // length, 1)
    for some_P2 in pairs_P2.split(rows):
        base_BT = source.below(source.vocab_size, len(some_P2), length)
        base_BT[:, cut - 1 : cut + 1] = some_P2
        changed_BT = base_BT.clone()
        changed_BT[:, cut] = (some_P2[:, 1] ^ 1).where((some_P2[:, 1] ^ 1) < source.vocab_size, 0)
        yield Probe(base_BT, changed_BT, torch.full((len(some_P2),), cut))


def all_pairs(vocab_size: int) -> torch.Tensor:
    """Every pair of neighbours whose second id is even; `pair_probes` compares it with the next odd id."""
    second = torch.arange(0, vocab_size, 2)
    return torch.cartesian_prod(torch.arange(vocab_size), second)


def real_pairs(windows: Sequence[torch.Tensor], most: int) -> torch.Tensor:
    """The pairs of neighbours in the windows, the most frequent first."""
    pairs_N2 = torch.cat([torch.stack((window[:-1], window[1:]), dim=1) for window in windows])
    found_P2, counts_P = pairs_N2.unique(dim=0, return_counts=True)
    return found_P2[counts_P.argsort(descending=True, stable=True)][:most]


def memory_probes(source: Source, rows: int, length: int) -> Iterator[Probe]:
    """Probes for calls that depend on earlier ones, and for leaks that appear only after some calls."""
    base_BT, other_BT = source.mixed(rows, length), source.mixed(rows, length)
    unchanged_B = torch.full((rows,), length)
    yield Probe(base_BT, base_BT, unchanged_B, (other_BT,), (base_BT,))
    yield Probe(base_BT, base_BT, unchanged_B, (other_BT,), (base_BT.roll(1, 1),))
    cut_B = source.cuts(rows, length)
    some = tuple(source.mixed(rows, length) for _ in range(6))
    yield Probe(base_BT, source.change(base_BT, cut_B), cut_B, some, some)


def calls_in_turn(source: Source, calls: int, length: int) -> Iterator[Probe]:
    """Probes for leaks that come with some calls only, such as every third: one row each, many calls of one copy."""
    base_BT = source.mixed(calls, length)
    for _ in range(2):
        cut_B = source.cuts(calls, length)
        yield Probe(base_BT, source.change(base_BT, cut_B), cut_B, in_turn=True)


def spread_cuts(context: int, most: int) -> list[int]:
    """All cuts from 1 to context - 1, or `most` of them: multiples of a power of two, and others spread over the rest.

    A module that works in chunks, mostly of a power of two, may leak across their edges only.
    """
    if most >= context - 1:
        return list(range(1, context))
    step = 1
    while (context - 1) // step > most // 2:
        step *= 2
    edges, others = list(range(step, context, step)), [cut for cut in range(1, context) if cut % step]
    kept = most - len(edges)
    # one of each part of the others: the first, the last, and in between now here, now there
    for part in range(kept):
        start, stop = part * len(others) // kept, (part + 1) * len(others) // kept
        share = 1.0 if part == kept - 1 > 0 else part * GOLDEN % 1
        edges.append(others[min(start + int(share * (stop - start)), stop - 1)])
    return sorted(edges)


def shapes_to_try(rows: int, context: int, number: int, primary: bool) -> list[tuple[int, int]]:
    """(rows, length) other than the evaluation's: few rows, odd numbers of rows, and shorter windows.

    `number` is that of the mode. Lengths that are too many for one mode are spread over all modes.
    """
    shapes = [(count, context) for count in ((1, 2, 3, 4, 5) if primary else (1, 5 - number % 4))]
    shapes += [
        (count, context) for count in (6, 7, 8, 9, 16, 32) if primary and count * context <= SHORT_TOKENS
    ]
    less = [(rows // 2 + 1, context // 2), (rows + 1, context // 4), (4, context - 1), (6, context * 3 // 4)]
    shapes += [shape for place, shape in enumerate(less) if primary or place % 2 == number % 2]
    short = [length for length in range(2, min(context, 10)) if primary or length % 2 == number % 2]
    longer = [length for length in (*range(10, min(context, 18)), *range(18, context, 7), 32, 64, 128, 512)]
    few = [1, 4, 7, 2, 12, 3, 33, 5, 8]
    chosen = short + [length for place, length in enumerate(longer) if place % 6 == number % 6]
    for place, length in enumerate(chosen):
        most = max(SHORT_TOKENS // length, 1)
        shapes.append((min(few[(place + number) % len(few)], most), length))
    return sorted({(count, length) for count, length in shapes if 2 <= length <= context and count >= 1})


def as_windows(windows: object, vocab_size: int, context: int) -> list[torch.Tensor]:
    """At most WINDOWS_KEPT windows, each at most `context` long, from an array (N, T) or a sequence of rows.

    Raises ValueError if they hold other numbers than ids below `vocab_size`.
    """
    rows = [torch.as_tensor(np.asarray(row)).long().flatten()[:context] for row in windows]  # type: ignore[attr-defined]
    rows = [row for row in rows if len(row) >= 2]
    if any(bool((row < 0).any() or (row >= vocab_size).any()) for row in rows):
        raise ValueError(f"the audit's windows hold ids outside 0 to {vocab_size - 1}")
    step = max(len(rows) / WINDOWS_KEPT, 1)
    return [rows[int(i * step)] for i in range(min(len(rows), WINDOWS_KEPT))]


def windows_of(ids: np.ndarray, context: int, count: int = WINDOWS_KEPT) -> list[np.ndarray]:
    """Windows for an audit, spread over a text, or one shorter window of a short text."""
    starts = np.linspace(0, max(len(ids) - context, 0), count).astype(np.int64)
    return [
        ids[start : start + context].astype(np.int64) for start in sorted({int(start) for start in starts})
    ]
