"""The audit: whether a language model sees the tokens it has to predict. For any module from token ids to logits.

A causal model's logits at a position depend only on that position and earlier ones of the same row, not on later
tokens, other rows, or earlier calls. The audit changes those and checks that no logit moves. The plan of what it tries
is in audit_plan.py, the inputs are in audit_inputs.py, and modules are called by audit_calls.py.

Other inputs can change the order of rounding (experts compute with other tokens in their batch), so a movement counts
only if it exceeds a small share of the logits' scale at that position (audit_scale.py). What it is then, a leak or
rounding, is told by audit_confirm.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from nanokimi.measure.audit_calls import (
    Call,
    Mode,
    Subject,
    default_call,
    partly_zero_parameters,
    random_states_kept,
    zero_parameters,
)
from nanokimi.measure.audit_confirm import CAUSAL, SMALL, Confirming, Finding, Moved
from nanokimi.measure.audit_inputs import Probe
from nanokimi.measure.audit_plan import (
    EVALUATION,
    MAX_CUTS,
    MODES,
    Plan,
    make_plan,
    not_excluded,
    planned_passes,
)
from nanokimi.measure.audit_scale import movement, tolerances

SCALE_COLUMNS = 128


@dataclass(frozen=True)
class AuditResult:
    """Whether a module is causal, and the evidence."""

    causal: bool
    verdict: str  # "causal", "LEAKING", "NONDETERMINISTIC" (equal ids gave different logits), or "UNDECIDED"
    max_leak: float  # largest movement of a logit that must not move (absolute, fp32)
    where: str | None  # a description of the finding, None if causal
    cuts: int  # positions at which the future was changed, in windows of the whole context
    context_length: int
    tolerance: float  # at the position that moved most; smaller movements are rounding
    passes: int  # number of forward passes
    not_excluded: tuple[str, ...]  # what may still be wrong with a module that passes


def audit(
    module: nn.Module,
    *,
    vocab_size: int,
    context: int,
    batch_size: int | None = None,
    max_cuts: int = MAX_CUTS,
    seed: int = 0,
    call: Call | None = None,
    windows: object | None = None,
) -> AuditResult:
    """Test whether `module` is causal, treats rows of a batch independently, and does not remember earlier calls.

    Args:
        module: maps ids (B, T) to logits (B, T, W): a tensor, a tuple that starts with it, or an object or dictionary
            with `logits` (Hugging Face) or `logits_BTW` (ours). A `forward` with a `targets` parameter (nanoGPT's,
            which otherwise computes only the last position) is given the next tokens as targets.
        vocab_size: ids are drawn below it.
        context: length of the sequences (T).
        batch_size: rows that an evaluation takes at a time (if 1, the audit takes 2); None: as many as ours takes.
        max_cuts: if T - 1 is larger, so many cuts are spread evenly (the result has the number).
        seed: of the tokens and of dropout.
        call: how to call the module if not as above; it may return any of the forms above.
        windows: ids of real text, (N, T) or a sequence of rows. Some of them are used, cut to `context`.

    Returns:
        AuditResult. The module, its mode and all global random states are unchanged.

    Raises:
        ValueError: the logits do not have the shape (B, T, W), or are NaN; an argument is too small; windows hold ids
            outside the vocabulary.
    """
    plan = make_plan(vocab_size, context, batch_size, max_cuts, seed, windows)
    zeros, partly = zero_parameters(module), partly_zero_parameters(module)
    auditor = _Auditor(subject=Subject(module, call or default_call(module), seed), plan=plan)
    with random_states_kept(auditor.subject.device):
        finding = auditor.run(zeros > 0)
    return AuditResult(
        causal=finding is None,
        verdict=finding.verdict if finding else CAUSAL,
        max_leak=auditor.max_leak,
        where=finding.where if finding else None,
        cuts=len(plan.cuts),
        context_length=context,
        tolerance=auditor.tolerance,
        passes=auditor.subject.calls,
        not_excluded=() if finding else not_excluded(plan, auditor.tried, (zeros, partly), auditor.bases),
    )


def audit_passes(
    module: nn.Module,
    vocab_size: int,
    context: int,
    batch_size: int | None = None,
    windows: object | None = None,
) -> list[tuple[int, int]]:
    """(rows, length) of each forward pass in the audit of a causal module, for a forecast."""
    plan = make_plan(vocab_size, context, batch_size, MAX_CUTS, 0, windows)
    return planned_passes(plan, zero_parameters(module) > 0)


@dataclass(kw_only=True)
class _Auditor(Confirming):
    """The state of an audit."""

    plan: Plan
    max_leak: float = 0.0
    tolerance: float = 0.0
    kept: tuple[Mode, Probe, torch.Tensor, torch.Tensor] | None = None
    """The last base, its logits and tolerances, because several probes share a base."""
    first_W: torch.Tensor | None = None
    """The logits at the first position of the first input."""

    def run(self, zeros: bool) -> Finding | None:
        """Try everything until something is found."""
        begun: set[Mode] = set()
        for mode, probe in self.plan.probes(zeros):
            finding = None
            if mode not in begun:
                begun.add(mode)
                finding = self.with_clones(partial(self.twice, mode, probe))
            finding = finding or self.unless_refused(mode, probe)
            if finding is not None:
                return finding
        assert len(begun) == len(MODES)
        self.tried.by_length = self.reads_length()
        return self.undecided

    def reads_length(self) -> bool:
        """Whether logits change at some position of every row if the window ends earlier, with the same tokens."""
        for base_BT, length in self.plan.shortened():
            whole, part = (
                Probe(base_BT, base_BT, base_BT[:, 0]),
                Probe(base_BT[:, :length], base_BT, base_BT[:, 0]),
            )
            try:
                whole_BTW = self.logits(EVALUATION, whole, changed=False)[:, :length]
                part_BTW = self.logits(EVALUATION, part, changed=False)
            except Exception:  # the module refuses the shape, which is said elsewhere
                continue
            moved_BT = movement(part_BTW, whole_BTW)
            # rounding, as at a router's near-tie, moves some rows alone
            if bool((moved_BT > SMALL * tolerances(whole_BTW, self.moving_X)).all(dim=0).any()):
                return True
        return False

    def twice(self, mode: Mode, probe: Probe) -> Finding | None:
        """Test with equal ids twice."""
        base_BTW, tolerance_BT = self.reference(mode, probe)
        if not self.tried.shapes and bool(base_BTW.isnan().any(dim=-1).float().mean() > 0.5):
            raise ValueError("the module's logits are NaN: there is nothing to audit")
        same = Probe(probe.base_BT, probe.base_BT, torch.full_like(probe.cut_B, probe.base_BT.shape[1]))
        return self.test(mode, same)

    def unless_refused(self, mode: Mode, probe: Probe) -> Finding | None:
        """Test, but allow the module to refuse shapes that do not occur in an evaluation."""
        test = partial(self.with_clones, partial(self.test, mode, probe))
        if probe.shape == (self.plan.main_rows(), self.plan.context):
            return test()
        try:
            return test()
        except Exception as error:
            reason = (" ".join(str(error).split()) or type(error).__name__)[:80]
            self.tried.refused.setdefault(probe.shape, reason)
            return None

    def with_clones(self, attempt: Callable[[], Finding | None]) -> Finding | None:
        """What an attempt finds, made once more with clones of inference tensors if the module fails without."""
        try:
            return attempt()
        except RuntimeError as error:
            if self.subject.clones or "nference tensor" not in str(error):
                raise
            self.subject.clones = True
            return attempt()

    def reference(self, mode: Mode, probe: Probe) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of a probe's base, and their tolerances."""
        if self.kept is not None and not probe.before:
            kept_mode, kept, base_BTW, tolerance_BT = self.kept
            if (kept_mode, kept.filled) == (mode, probe.filled) and kept.base_BT is probe.base_BT:
                return base_BTW, tolerance_BT
        self.bases += 1
        base_BTW = self.logits(mode, probe, changed=False)
        self.note_moving(base_BTW)
        tolerance_BT = tolerances(base_BTW, self.moving_X)
        self.kept = None if probe.before else (mode, probe, base_BTW, tolerance_BT)
        return base_BTW, tolerance_BT

    def note_moving(self, logits_BTW: torch.Tensor) -> None:
        """Choose the columns in which scales are measured: those that differ in the first inputs that differ."""
        if self.first_W is None:
            self.first_W = logits_BTW[0, 0].clone()  # a view would keep the whole batch in memory
        if self.moving_X is None or len(self.moving_X) < 2:
            moving_X = (logits_BTW != self.first_W).any(dim=0).any(dim=0).nonzero()[:, 0]
            spread_X = torch.arange(min(len(moving_X), SCALE_COLUMNS)) * len(moving_X)
            self.moving_X = moving_X[
                (spread_X // max(min(len(moving_X), SCALE_COLUMNS), 1)).to(moving_X.device)
            ]

    def test(self, mode: Mode, probe: Probe) -> Finding | None:
        """What a probe finds, if anything."""
        base_BTW, tolerance_BT = self.reference(mode, probe)
        changed_BTW = self.logits(mode, probe, changed=True)
        all_BT = movement(changed_BTW, base_BTW)
        moved_BT = all_BT.where(probe.protected_BT().to(all_BT.device), 0.0)
        self.tried.shapes.add(probe.shape)
        calls = len(probe.base_BT) if probe.in_turn else len(probe.before) + 1
        self.tried.calls = max(self.tried.calls, calls)
        self.tried.moved |= bool(all_BT.any())
        worst = int((moved_BT / tolerance_BT).argmax())
        if float(moved_BT.max()) >= self.max_leak:
            self.max_leak, self.tolerance = float(moved_BT.max()), float(tolerance_BT.flatten()[worst])
        if not bool(moved_BT.any()):
            return None
        found = Moved(mode, probe, base_BTW, changed_BTW, moved_BT, tolerance_BT)
        finding = self.confirm(found) if bool(found.counts_BT.any()) else self.confirm_faint(found)
        if mode in self.tried.constant:
            self.kept = None  # its random numbers may have been others
        return finding
