"""Everything that the audit tries, in order, and a description of what it does not try."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from nanokimi.measure.audit_calls import Mode
from nanokimi.measure.audit_inputs import (
    Probe,
    Source,
    all_pairs,
    as_windows,
    calls_in_turn,
    main_probes,
    memory_probes,
    pair_probes,
    real_pairs,
    shape_probes,
    shapes_to_try,
    spread_cuts,
    sweep_probes,
)
from nanokimi.measure.evaluate import TOKENS_AT_A_TIME

MAX_CUTS = 256
LOGITS_AT_A_TIME, MOST_LOGITS = 2**27, 2**29
FEWEST_ROWS, MOST_ROWS = 4, 64
CALLS_IN_TURN, LENGTH_ROWS = 48, 8
SWEPT_IDS, REAL_PAIRS, RANDOM_PAIRS = 8192, 4096, 2048
SMALL_VOCABULARY = 256  # vocabularies up to here have every pair of neighbours tried

EVALUATION = Mode(training=False, gradients="inference_mode")
TRAINING = Mode(training=True, gradients="gradients on")
MODES = (
    EVALUATION,  # first, because scores come from it
    Mode(training=False, gradients="no_grad"),
    Mode(training=False, gradients="gradients on"),
    TRAINING,
    Mode(training=True, gradients="no_grad"),
    Mode(training=True, gradients="inference_mode"),
)
PRIMARY = (EVALUATION, TRAINING)
"""Modes in which everything is tried. The others try half of the cuts and a part of the shapes."""


@dataclass
class Plan:
    """What is tried on a module with `vocab_size` ids, in windows of `context`."""

    vocab_size: int
    context: int
    rows: int
    """Rows of an evaluation's batch."""
    cuts: list[int]
    windows: list[torch.Tensor]
    seed: int
    ids_swept: int = 0
    pairs_swept: int = 0

    def main_rows(self) -> int:
        """Rows of most batches: as many as an evaluation takes, or fewer if their logits take too much memory."""
        held = LOGITS_AT_A_TIME // (self.context * self.vocab_size)
        return min(self.rows, MOST_ROWS, max(FEWEST_ROWS, held))

    def tokens_at_a_time(self) -> int:
        """Tokens in a batch of short windows."""
        return max(min(TOKENS_AT_A_TIME, LOGITS_AT_A_TIME // self.vocab_size), 64)

    def probes(self, zeros: bool) -> Iterator[tuple[Mode, Probe]]:
        """Every probe with its mode. `zeros` says whether the module has parameters that are all zero."""
        source = Source(self.vocab_size, torch.Generator().manual_seed(self.seed), self.windows)
        for number, mode in enumerate(MODES):
            yield from ((mode, probe) for probe in self.probes_of(mode, number, source))
        if zeros:
            base_BT = source.mixed(self.main_rows(), self.context)
            for _ in range(4):
                cut_B = source.cuts(len(base_BT), self.context)
                yield EVALUATION, source.probe(base_BT, cut_B, filled=True)

    def probes_of(self, mode: Mode, number: int, source: Source) -> Iterator[Probe]:
        """The probes of one mode."""
        rows, context, primary = self.main_rows(), self.context, mode in PRIMARY
        cuts = self.cuts if primary or len(self.cuts) < 16 else self.cuts[number % 2 :: 2]
        yield from main_probes(source, rows, context, cuts, rows if primary else min(rows, 5))
        shapes = shapes_to_try(min(rows, TOKENS_AT_A_TIME // context + 1), context, number, primary)
        if primary and rows < self.rows and self.rows * context * self.vocab_size <= MOST_LOGITS:
            shapes.append((self.rows, context))
        yield from shape_probes(source, shapes, primary)
        if primary:
            yield from self.sweeps(mode, source)
        if mode == EVALUATION:
            yield from shape_probes(source, self.shapes_of_short_documents(), True)
            yield from memory_probes(source, min(rows, 2), context)
            length = max(min(context, self.tokens_at_a_time() // CALLS_IN_TURN), 2)
            yield from calls_in_turn(source, CALLS_IN_TURN, length)

    def shortened(self) -> list[tuple[torch.Tensor, int]]:
        """Windows, and the lengths to which they are cut to see whether a module reads how long they are."""
        source = Source(self.vocab_size, torch.Generator().manual_seed(self.seed), self.windows)
        lengths = sorted({self.context - 1, self.context * 3 // 4} - {0, 1})
        return [
            (source.mixed(min(self.main_rows(), LENGTH_ROWS), self.context), length) for length in lengths
        ]

    def shapes_of_short_documents(self) -> list[tuple[int, int]]:
        """(rows, length) of an evaluation's batches of windows shorter than the context: as many tokens, more rows."""
        lengths = [self.context // share for share in (2, 4, 8) if self.context // share >= 2]
        tokens = min(self.rows * self.context, MOST_LOGITS // self.vocab_size)
        return [(tokens // length, length) for length in lengths if tokens >= length]

    def sweeps(self, mode: Mode, source: Source) -> Iterator[Probe]:
        """Single ids of the vocabulary and pairs of neighbours, in short windows."""
        tokens = self.tokens_at_a_time()
        ids = torch.randperm(self.vocab_size, generator=source.generator)
        if len(ids) > SWEPT_IDS:  # those of the windows first
            real = torch.cat([torch.empty(0, dtype=torch.long), *self.windows]).unique()
            ids = torch.cat((real, ids[~torch.isin(ids, real)]))[:SWEPT_IDS]
        self.ids_swept = len(ids)
        yield from sweep_probes(source, ids, self.context, tokens)
        if self.vocab_size <= SMALL_VOCABULARY:
            pairs_P2 = all_pairs(self.vocab_size)
        elif self.windows:
            pairs_P2 = real_pairs(self.windows, REAL_PAIRS)
        else:
            pairs_P2 = source.below(self.vocab_size, RANDOM_PAIRS, 2)
        self.pairs_swept = len(pairs_P2)
        if mode == EVALUATION or len(pairs_P2) <= REAL_PAIRS:
            yield from pair_probes(source, pairs_P2, self.context, tokens)


def make_plan(
    vocab_size: int,
    context: int,
    batch_size: int | None,
    max_cuts: int,
    seed: int,
    windows: object | None,
) -> Plan:
    """A plan. Raises ValueError if a size is too small, or if windows hold ids outside the vocabulary.

    If an evaluation takes one row at a time, the audit takes two, so that it can see whether rows affect each other.
    """
    rows = max(TOKENS_AT_A_TIME // max(context, 1), FEWEST_ROWS) if batch_size is None else batch_size
    if rows < 1 or context < 2 or vocab_size < 2 or max_cuts < 1:
        raise ValueError(
            "the audit needs a batch_size of 1 or more, context and vocab_size of at least 2, and a cut"
        )
    rows = max(rows, 2)
    real = [] if windows is None else as_windows(windows, vocab_size, context)
    return Plan(vocab_size, context, rows, spread_cuts(context, max_cuts), real, seed)


def planned_passes(plan: Plan, zeros: bool) -> list[tuple[int, int]]:
    """(rows, length) of every forward pass in an audit without findings."""
    passes: list[tuple[int, int]] = [(plan.main_rows(), plan.context)] * len(MODES)  # the calls of twice()
    last: tuple[Mode, int] | None = None
    for mode, probe in plan.probes(zeros):
        base = (mode, id(probe.base_BT))
        fresh = base != last or bool(probe.before)
        calls = len(probe.base_BT) if probe.in_turn else 1
        passes += [probe.shape] * (calls * (1 + fresh) + len(probe.before) * 2)
        last = None if probe.before else base
    for base_BT, length in plan.shortened():
        passes += [(len(base_BT), plan.context), (len(base_BT), length)]
    return passes


@dataclass
class Tried:
    """What an audit has tried so far."""

    shapes: set[tuple[int, int]] = field(default_factory=set)
    refused: dict[tuple[int, int], str] = field(default_factory=dict)
    """Shapes other than the evaluation's at which the module raised an error, and the error."""
    unconfirmed: int = 0
    """Movements that vanish in float64 and were not looked into further, because there were too many of them."""
    calls: int = 1
    """The most calls in a row of one copy."""
    moved: bool = False
    """Whether any logit depends on the ids."""
    by_length: bool = False
    """Whether logits change with the length of the window."""
    faint: str = ""
    """Why a movement below the tolerance could not be repeated in float64."""
    constant: set[Mode] = field(default_factory=set)
    """Modes in which constants took the place of torch's random numbers, because these moved logits."""


def not_excluded(plan: Plan, tried: Tried, zeros: tuple[int, int], draws: int) -> tuple[str, ...]:
    """A description of what an audit without findings cannot exclude, the most specific first.

    `zeros` is how many parameters are all zero, and how many are so in part.
    """
    context, said = plan.context, []
    if not tried.moved:
        said.append("anything: no logit depends on the ids, as with a head that is still zero")
    if len(plan.cuts) < context - 1:
        said.append(f"a leak at one position only: {len(plan.cuts)} of {context - 1} cuts were tried")
    lengths = {length for _, length in tried.shapes}
    if len(lengths) < context - 1:
        said.append(
            f"a leak in windows of one length only: {len(lengths)} of {context - 1} lengths were tried"
        )
    if tried.by_length:
        said.append(
            "a gain from the window's length, with which the logits change: where a document is shorter than the "
            "context, its window tells where it ends"
        )
    if tried.refused:
        (rows, length), reason = next(iter(tried.refused.items()))
        said.append(
            f"a leak in {len(tried.refused)} shapes that the module refuses, as {rows} rows of {length} ({reason})"
        )
    most = max((rows for rows, length in tried.shapes if length == context), default=0)
    said.append(f"a leak that needs more than {most} rows of {context} tokens, or a number of rows not tried")
    said += untried_tokens(plan)
    said.append(f"a leak that comes by chance, in fewer than about one of {draws} calls")
    if tried.unconfirmed:
        said.append(
            f"a leak in {tried.unconfirmed} movements that vanish in float64, taken for rounding like those before"
        )
    if tried.faint:
        said.append(f"a leak smaller than rounding, because nothing runs in float64 ({tried.faint})")
    if tried.constant:
        modes = ", ".join(sorted({"training" if mode.training else "evaluation" for mode in tried.constant}))
        said.append(
            f"a leak that only some random numbers set off, in {modes} mode: constants took their place there, "
            "because how many are drawn depends on the ids"
        )
    said.append(f"a leak that comes with one call of more than {tried.calls}, if the module counts them")
    said.append("a leak from an earlier call in another mode than the evaluation's")
    if zeros[0]:
        said.append(
            f"a leak held back by other values than were tried for {zeros[0]} parameters that are all zero"
        )
    if zeros[1]:
        said.append(f"a leak held back by zeros among the numbers of {zeros[1]} parameters")
    said.append(
        "a module that notices the audit, state outside the module, other data types, compiled graphs, other devices"
    )
    return tuple(said)


def untried_tokens(plan: Plan) -> Sequence[str]:
    """A description of tokens and sequences of tokens that were not tried."""
    said = []
    if plan.ids_swept < plan.vocab_size:
        said.append(f"a leak for one token: {plan.ids_swept:,} of {plan.vocab_size:,} ids were tried")
    if plan.vocab_size > SMALL_VOCABULARY:
        kind = "of the windows" if plan.windows else "at random"
        said.append(f"a leak for one pair of neighbours: {plan.pairs_swept:,} pairs {kind} were tried")
    if not plan.windows:
        said.append("a leak that only real text sets off: no windows were given")
    said.append("a leak for one sequence of three or more tokens, or for one token at one position")
    return said
