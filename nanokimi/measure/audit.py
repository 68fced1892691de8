"""The audit: whether a language model sees the tokens it has to predict. For any module from token ids to logits.

A causal model's logits at a position depend only on that position and earlier ones of the same row, not on later
tokens, other rows, or earlier calls. The audit changes those and checks that no logit moves. The plan of what it tries
is in audit_plan.py, the inputs are in audit_inputs.py, and modules are called by audit_calls.py.

Other inputs can change the order of rounding (experts compute with other tokens in their batch), so a movement counts
only if it exceeds a small share of the logits' scale at that position. It is then repeated in float64 if the module
runs in it. There, a leak stays and rounding vanishes, even rounding that tips a router's near-tie. A movement that
vanishes is still a leak if tiny changes of the parameters do not cause similar movements in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import nn

from nanokimi.measure.audit_calls import (
    Call,
    Mode,
    Subject,
    default_call,
    random_states_kept,
    zero_parameters,
)
from nanokimi.measure.audit_inputs import Probe
from nanokimi.measure.audit_plan import (
    MAX_CUTS,
    MODES,
    Plan,
    Tried,
    make_plan,
    not_excluded,
    planned_passes,
)

TOLERANCES = {torch.float32: (5e-5, 1e-7), torch.float64: (1e-8, 1e-12)}
"""Relative to the scale of a position, and absolute in nats."""
LARGEST_SCALE = 30.0
"""Nats. Larger deviations of a logit are clamped, so that a few huge ones cannot widen the tolerance."""
SCALE_COLUMNS = 128
CONFIRMATIONS, REPEATS = 24, 2
"""Movements that are looked into, and how often each input is tried again. Later ones are only tried in float64."""
JITTER, JITTERS, EXPLAINED = 1e-6, 16, 0.1
"""The relative size of changes of the parameters, how many are tried, and the share of a movement that they explain."""
SMALL = 200
"""Movements of up to so many tolerances, 1% of the scale, are rounding if they vanish in float64 (see `explained`)."""
SMALL_NATS = 0.03
"""The most nats of such a movement: columns far from the others make the scale large."""
CAUSAL, LEAKING, NONDETERMINISTIC = "causal", "LEAKING", "NONDETERMINISTIC"


@dataclass(frozen=True)
class AuditResult:
    """Whether a module is causal, and the evidence."""

    causal: bool
    verdict: str  # "causal", "LEAKING", or "NONDETERMINISTIC" if equal ids gave different logits
    max_leak: float  # largest movement of a logit that must not move (absolute, fp32)
    where: str | None  # a description of the finding, None if causal
    cuts: int  # positions at which the future was changed, in windows of the whole context
    context_length: int
    tolerance: float  # at the position that moved most; smaller movements are rounding
    passes: int  # number of forward passes
    not_excluded: tuple[str, ...]  # what may still be wrong with a module that passes


@dataclass(frozen=True)
class _Finding:
    verdict: str
    where: str


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
    zeros = zero_parameters(module)
    auditor = _Auditor(Subject(module, call or default_call(module), seed), plan)
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
        not_excluded=() if finding else not_excluded(plan, auditor.tried, zeros, auditor.bases),
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


@dataclass
class _Auditor:
    """The state of an audit."""

    subject: Subject
    plan: Plan
    tried: Tried = field(default_factory=Tried)
    max_leak: float = 0.0
    tolerance: float = 0.0
    confirmations: int = 0
    bases: int = 0
    """Base inputs so far. Each has its own random numbers, which its changed inputs share."""
    kept: tuple[Mode, Probe, torch.Tensor, torch.Tensor] | None = None
    """The last base, its logits and tolerances, because several probes share a base."""
    first_W: torch.Tensor | None = None
    """The logits at the first position of the first input."""
    moving_X: torch.Tensor | None = None
    """Columns whose logits differ between inputs, up to SCALE_COLUMNS of them."""

    def run(self, zeros: bool) -> _Finding | None:
        """Try everything until something is found."""
        begun: set[Mode] = set()
        for mode, probe in self.plan.probes(zeros):
            finding = None
            if mode not in begun:
                begun.add(mode)
                finding = self.twice(mode, probe)
            finding = finding or self.unless_refused(mode, probe)
            if finding is not None:
                return finding
        assert len(begun) == len(MODES)
        return None

    def twice(self, mode: Mode, probe: Probe) -> _Finding | None:
        """Test with equal ids twice."""
        base_BTW, tolerance_BT = self.reference(mode, probe)
        if not self.tried.shapes and bool(base_BTW.isnan().any(dim=-1).float().mean() > 0.5):
            raise ValueError("the module's logits are NaN: there is nothing to audit")
        same = Probe(probe.base_BT, probe.base_BT, torch.full_like(probe.cut_B, probe.base_BT.shape[1]))
        return self.test(mode, same)

    def unless_refused(self, mode: Mode, probe: Probe) -> _Finding | None:
        """Test, but allow the module to refuse shapes that do not occur in an evaluation."""
        if probe.shape == (self.plan.main_rows(), self.plan.context):
            return self.test(mode, probe)
        try:
            return self.test(mode, probe)
        except Exception as error:
            reason = (" ".join(str(error).split()) or type(error).__name__)[:80]
            self.tried.refused.setdefault(probe.shape, reason)
            return None

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

    def logits(
        self,
        mode: Mode,
        probe: Probe,
        *,
        changed: bool,
        dtype: torch.dtype = torch.float32,
        jitter: tuple[float, int] | None = None,
    ) -> torch.Tensor:
        """Logits of one of a probe's two inputs."""
        ids_BT = probe.changed_BT if changed else probe.base_BT
        before = probe.before_changed if changed else probe.before
        return self.subject.logits(
            ids_BT,
            mode,
            draw=self.bases,
            before=before,
            dtype=dtype,
            jitter=jitter,
            filled=probe.filled,
            in_turn=probe.in_turn,
        )

    def test(self, mode: Mode, probe: Probe) -> _Finding | None:
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
        if not bool((moved_BT > tolerance_BT).any()):
            return None
        self.confirmations += 1
        return self.confirm(mode, probe, base_BTW, changed_BTW, moved_BT, tolerance_BT)

    def confirm(
        self,
        mode: Mode,
        probe: Probe,
        base_BTW: torch.Tensor,
        changed_BTW: torch.Tensor,
        moved_BT: torch.Tensor,
        tolerance_BT: torch.Tensor,
    ) -> _Finding | None:
        """Whether a movement in fp32 is a leak, random, or rounding (None)."""
        worst, dtype = int((moved_BT / tolerance_BT).argmax()), torch.float32
        doubles = self.in_double(mode, probe)
        if doubles is not None:
            base64_BTW, changed64_BTW = doubles
            moved64_BT = movement(changed64_BTW, base64_BTW)
            moved64_BT = moved64_BT.where(probe.protected_BT().to(moved64_BT.device), 0.0)
            ratio64_BT = moved64_BT / tolerances(base64_BTW, self.moving_X)
            if bool((ratio64_BT > 1).any()):
                worst, dtype = int(ratio64_BT.argmax()), torch.float64
                base_BTW, changed_BTW = doubles
            elif self.confirmations > CONFIRMATIONS:
                self.tried.unconfirmed += 1
                return None
            elif self.explained(mode, probe, base_BTW, changed_BTW, moved_BT, tolerance_BT):
                return None
        if self.varies(mode, probe, base_BTW, changed_BTW, dtype):
            words = "the same ids give logits that differ, with all random generators seeded alike"
            return _Finding(NONDETERMINISTIC, f"{words} (by {float(moved_BT.max()):.3g}; {mode})")
        return self.leak(mode, probe, worst, dtype)

    def in_double(self, mode: Mode, probe: Probe) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Logits of both inputs of a probe in float64, if the module runs in it."""
        try:
            base_BTW = self.logits(mode, probe, changed=False, dtype=torch.float64)
            return base_BTW, self.logits(mode, probe, changed=True, dtype=torch.float64)
        except (RuntimeError, TypeError, NotImplementedError):
            return None  # a kernel without float64

    def varies(
        self, mode: Mode, probe: Probe, base_BTW: torch.Tensor, changed_BTW: torch.Tensor, dtype: torch.dtype
    ) -> bool:
        """Whether the protected logits of a probe's inputs change when the inputs are tried again."""
        protected_BT = probe.protected_BT().to(base_BTW.device)
        tolerance_BT = tolerances(base_BTW, self.moving_X)
        for changed, before_BTW in ((False, base_BTW), (True, changed_BTW)) * REPEATS:
            again_BT = movement(self.logits(mode, probe, changed=changed, dtype=dtype), before_BTW)
            if bool((again_BT > tolerance_BT)[protected_BT].any()):
                return True
        return False

    def explained(
        self,
        mode: Mode,
        probe: Probe,
        base_BTW: torch.Tensor,
        changed_BTW: torch.Tensor,
        moved_BT: torch.Tensor,
        tolerance_BT: torch.Tensor,
    ) -> bool:
        """Whether changes of the parameters in their last digits move the same logits about as far.

        Such a movement has to come again with the same change, and from logits computed afresh, because noise that is
        drawn anew at each call would otherwise explain itself. Movements below 1% of the scale and SMALL_NATS need no
        explanation: a model gains next to nothing by so small a leak.
        """
        unexplained_BT = moved_BT > (SMALL * tolerance_BT).clamp(max=SMALL_NATS)
        if not bool(unexplained_BT.any()):
            return True
        fresh = {changed: self.logits(mode, probe, changed=changed) for changed in (False, True)}
        for number in range(JITTERS):
            changed = number % 2 == 1
            first_BTW = changed_BTW if changed else base_BTW
            explained_BT = unexplained_BT.clone()
            for _ in range(REPEATS):
                jittered_BTW = self.logits(mode, probe, changed=changed, jitter=(JITTER, number))
                caused_BT = movement(jittered_BTW, first_BTW).minimum(movement(jittered_BTW, fresh[changed]))
                explained_BT &= caused_BT >= EXPLAINED * moved_BT
                if not bool(explained_BT.any()):
                    break
            unexplained_BT &= ~explained_BT
            if not bool(unexplained_BT.any()):
                return True
        return False

    def leak(self, mode: Mode, probe: Probe, worst: int, dtype: torch.dtype) -> _Finding:
        """Describe a leak: whether it comes from later tokens, other rows or an earlier call."""
        rows, length = probe.base_BT.shape
        row, position = divmod(worst, length)
        cut = int(probe.cut_B[row])
        source = "sees an earlier call"
        if probe.changed_BT is not probe.base_BT:
            source = "sees an earlier call" if probe.in_turn else "sees other rows of the batch"
            if position < cut < length:
                alone_BT = probe.base_BT.clone()
                alone_BT[row] = probe.changed_BT[row]
                alone = replace(probe, changed_BT=alone_BT, before_changed=probe.before)
                base_BTW = self.logits(mode, alone, changed=False, dtype=dtype)
                moved_BT = movement(self.logits(mode, alone, changed=True, dtype=dtype), base_BTW)
                if bool(moved_BT[row, position] > tolerances(base_BTW, self.moving_X)[row, position]):
                    source = f"sees tokens from position {cut} on"
        whose, shape = f"row {row}", f"{rows} rows of {length}"
        if probe.in_turn:
            whose, shape = f"call {row + 1}", f"one row of {length}"
        where = f"position {position} of {whose} {source} ({mode}, {shape}"
        if probe.filled:
            where += ", parameters that are zero filled"
        return _Finding(LEAKING, where + ")")


def movement(logits_BTW: torch.Tensor, reference_BTW: torch.Tensor) -> torch.Tensor:
    """Largest change over the vocabulary (B, T), infinite for a logit that becomes NaN."""
    change_BTW = logits_BTW - reference_BTW
    change_BT = torch.linalg.vector_norm(change_BTW, ord=float("inf"), dim=-1)
    if bool(change_BT.isfinite().all()):
        return change_BT
    same_BTW = (logits_BTW == reference_BTW) | (logits_BTW.isnan() & reference_BTW.isnan())
    return change_BTW.abs().nan_to_num(nan=float("inf")).masked_fill(same_BTW, 0.0).amax(dim=-1)


def tolerances(logits_BTW: torch.Tensor, moving_X: torch.Tensor | None) -> torch.Tensor:
    """How much rounding may move logits, (B, T): a share of each position's scale.

    The scale is the mean deviation from the median over the columns `moving_X`. These leave out columns that are equal
    for all inputs (mostly masked ones). Deviations are clamped to LARGEST_SCALE.
    """
    share, least = TOLERANCES[torch.float64 if logits_BTW.dtype == torch.float64 else torch.float32]
    if moving_X is None or not len(moving_X):
        return torch.full_like(logits_BTW[..., 0], least)
    some_NX = logits_BTW.flatten(0, 1)[:, moving_X.to(logits_BTW.device)]
    some_NX = some_NX.masked_fill(~some_NX.isfinite(), float("nan"))
    deviation_NX = (some_NX - some_NX.nanmedian(dim=1, keepdim=True).values).abs()
    scale_N = deviation_NX.clamp(max=LARGEST_SCALE).nanmean(dim=1).nan_to_num()
    scale_N = scale_N.clamp(min=1e-3 * float(scale_N.median()))
    return (share * scale_N).clamp(min=least).view(logits_BTW.shape[:2])
