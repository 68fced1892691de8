"""What a suspicious movement is: a leak, rounding, chance, or nothing that can be told.

It is repeated in float64, where rounding vanishes and a leak stays. A module that computes in single precision all the
same is run with its casts replaced (audit_double.py). What vanishes must come again in fp32 if the parameters change in
their last digits, as where a router's near-tie tips; otherwise it is a leak that shows only in fp32.

If nothing runs in float64, such changes of the parameters are all that there is. A movement that they do not cause, or
that stays the same whatever they are, is a leak. Otherwise rounding and a small leak look alike, and the verdict says
so: it is no pass.

A movement below the tolerance may be a leak that training has yet to open, as behind a small gate: float64 shows it.

What vanishes if torch's random numbers are constants (audit_draws.py) is no leak: it was other random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from nanokimi.measure.audit_calls import Mode, Subject
from nanokimi.measure.audit_double import Precision
from nanokimi.measure.audit_draws import LEVELS, Draws, level_of
from nanokimi.measure.audit_inputs import Probe
from nanokimi.measure.audit_plan import PRIMARY, Tried
from nanokimi.measure.audit_scale import TOLERANCES, movement, tolerances

CONFIRMATIONS, REPEATS = 24, 2
"""Movements that are looked into, and how often each input is tried again. Later ones are only tried in float64."""
JITTER, JITTERS, EXPLAINED = 1e-6, 16, 0.1
"""The relative size of changes of the parameters, how many are tried, and the share of a movement that they explain."""
GROWING = (1e-6, 1e-5, 1e-4)
"""The sizes, in turn, where nothing runs in float64: rounding may be coarser than the smallest."""
COARSE, COARSER = 1e-4, (1 / 64, 1 / 16, 1 / 4)
"""A module whose types round more coarsely than this, as bfloat16 does, has changes of these shares of its rounding."""
ALIKE, UNLIKE = 0.1, 1
"""A movement stays the same if it changes by at most this share, but for so many of the changes of the parameters."""
SMALL = 200
"""Movements of up to so many tolerances, 1% of the scale, are rounding if they vanish in float64 (`to_explain`)."""
SMALL_NATS = 0.03
"""The most nats of such a movement: columns far from the others make the scale large."""
FAINTER = 2.0
"""A movement below the tolerance is looked into if it is so many times as large as those before it in its mode."""
ALIKE_POSITIONS, ROUNDINGS = 0.1, 8
"""The share of positions whose logits must be the same in fp32 and with the casts replaced, to 1% of the scale or to so
many times the rounding of types coarser than fp32."""
CAUSAL, LEAKING, NONDETERMINISTIC, UNDECIDED = "causal", "LEAKING", "NONDETERMINISTIC", "UNDECIDED"


@dataclass(frozen=True)
class Finding:
    """A verdict and what it rests on, in words."""

    verdict: str
    where: str


@dataclass(frozen=True)
class Moved:
    """The logits of a probe's two inputs, and how far each position moved."""

    mode: Mode
    probe: Probe
    base_BTW: torch.Tensor
    changed_BTW: torch.Tensor
    moved_BT: torch.Tensor
    """0 where a logit may move."""
    tolerance_BT: torch.Tensor
    dtype: torch.dtype = torch.float32
    raised: bool = False
    """Whether the module's casts were replaced by casts to float64."""

    @property
    def counts_BT(self) -> torch.Tensor:
        """Positions that moved further than rounding may move them."""
        return self.moved_BT > self.tolerance_BT

    def worst(self, among_BT: torch.Tensor) -> int:
        """The flat index of the position that moved most, in tolerances."""
        return int((self.moved_BT / self.tolerance_BT).where(among_BT, 0.0).argmax())


@dataclass(kw_only=True)
class Confirming:
    """Calls of a module, and what is made of its movements."""

    subject: Subject
    tried: Tried = field(default_factory=Tried)
    confirmations: int = 0
    bases: int = 0
    """Base inputs so far. Each has its own random numbers, which its changed inputs share."""
    moving_X: torch.Tensor | None = None
    """Columns whose logits differ between inputs, some of them."""
    undecided: Finding | None = None
    """The first movement that is rounding or a leak, and nobody can tell."""
    faintest: dict[Mode, float] = field(default_factory=dict)
    """In each mode the largest movement below the tolerance that was looked into, in tolerances."""

    def logits(
        self,
        mode: Mode,
        probe: Probe,
        *,
        changed: bool,
        dtype: torch.dtype = torch.float32,
        jitter: tuple[float, int] | None = None,
        precision: Precision | None = None,
        draws: Draws | None = None,
    ) -> torch.Tensor:
        """Logits of one of a probe's two inputs."""
        if mode in self.tried.constant and draws is None:
            draws = Draws(level_of(self.bases))
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
            precision=precision,
            draws=draws,
        )

    def moved(
        self, mode: Mode, probe: Probe, base_BTW: torch.Tensor, changed_BTW: torch.Tensor, **kind: object
    ) -> Moved:
        """What a probe moved, of the positions that must not move."""
        moved_BT = movement(changed_BTW, base_BTW)
        moved_BT = moved_BT.where(probe.protected_BT().to(moved_BT.device), 0.0)
        tolerance_BT = tolerances(base_BTW, self.moving_X)
        return Moved(mode, probe, base_BTW, changed_BTW, moved_BT, tolerance_BT, **kind)  # type: ignore[arg-type]

    def again(self, found: Moved, *, changed: bool, probe: Probe | None = None) -> torch.Tensor:
        """The logits of an input once more, in the same precision."""
        precision = Precision(raised=True) if found.raised else None
        return self.logits(
            found.mode, probe or found.probe, changed=changed, dtype=found.dtype, precision=precision
        )

    def confirm(self, found: Moved) -> Finding | None:
        """Whether a movement in fp32 is a leak, random, or rounding (None)."""
        self.confirmations += 1
        double, why = self.in_double(found)
        if double is None:
            return self.without_double(found, why)
        if bool(double.counts_BT.any()):
            if finding := self.random(double):
                return finding
            return None if self.is_by_draws(double) else self.leak(double, double.counts_BT)
        if self.confirmations > CONFIRMATIONS:
            self.tried.unconfirmed += 1
            return None
        left_BT = self.left_in_single(found, strictly=double.raised)
        return (self.random(found) or self.leak(found, left_BT)) if bool(left_BT.any()) else None

    def left_in_single(self, found: Moved, *, strictly: bool) -> torch.Tensor:
        """The movements (B, T) that vanish in float64 and are a leak all the same.

        Rounding changes with the parameters' last digits. A movement that stays the same is a leak, however small.
        """
        left_BT = self.to_explain(found, strictly=strictly)
        if (rounding := self.rounding(found)) > COARSE:
            sizes = [share * rounding for share in COARSER]
            if bool(left_BT.any()):
                left_BT &= self.unexplained(found, left_BT, sizes) | self.persisting(found, sizes)
            return left_BT
        if bool(left_BT.any()):
            left_BT = self.unexplained(found, left_BT)
        return left_BT | self.persisting(found)

    def rounding(self, found: Moved) -> float:
        """The coarsest relative rounding of the types that the module computes in, in fp32."""
        watch = Precision(raised=False)
        self.logits(found.mode, found.probe, changed=False, precision=watch)
        return watch.rounding

    def confirm_faint(self, found: Moved) -> Finding | None:
        """Whether a movement in fp32 that is no larger than rounding may be is a leak all the same."""
        share = float((found.moved_BT / found.tolerance_BT).max())
        if (
            found.mode not in PRIMARY
            or found.probe.in_turn
            or share <= FAINTER * self.faintest.get(found.mode, 0.0)
        ):
            return None
        self.faintest[found.mode] = share
        double, why = self.in_double(found)
        if double is None:
            self.tried.faint = why
        if double is None or not bool(double.counts_BT.any()) or self.is_by_draws(double):
            return None
        finding = self.random(double) or self.leak(double, double.counts_BT)
        return replace(finding, where=f"{finding.where}, by less than rounding in fp32: float64 shows it")

    def without_double(self, found: Moved, why: str) -> Finding | None:
        """The same for a module that does not run in float64; `undecided` is kept, as a leak may still be found."""
        if self.undecided is not None and self.confirmations > CONFIRMATIONS:
            return None
        if finding := self.random(found):
            return finding
        if self.is_by_draws(found):
            return None
        for left_BT in (self.persisting(found), self.unexplained(found, found.counts_BT, GROWING)):
            if bool(left_BT.any()):
                return self.leak(found, left_BT)
        if self.undecided is None:
            where = self.describe(found, "moves with", found.counts_BT)
            self.undecided = Finding(
                UNDECIDED,
                f"{where}, as it does with other last digits of the parameters: rounding, as at a router's near-tie, "
                f"or a leak. A forward that can run in float64 would tell which ({why})",
            )
        return None

    def in_double(self, found: Moved) -> tuple[Moved | None, str]:
        """The probe in float64, or else why the module does not run in it.

        Casts are replaced only if it fails as it is, or still moves while it computes in single precision.
        """
        plain, single = None, Precision(raised=False)
        why = "it computes in single precision whatever type its parameters have"
        try:
            plain = self.doubles(found, single)
        except Exception as error:  # whatever its code says to another type
            why = " ".join(str(error).split())[:80] or type(error).__name__
        if plain is not None and not (single.single and bool(plain.counts_BT.any())):
            return plain, ""
        try:
            everything = Precision(raised=True)
            raised = self.doubles(found, everything)
        except Exception:  # whatever an unusual type causes in the module's code
            return None, why
        return (raised, "") if self.alike(found, raised) and not everything.single else (None, why)

    def alike(self, found: Moved, raised: Moved) -> bool:
        """Whether the logits with the casts replaced are still the module's own, up to the rounding of its types."""
        far_BT = movement(raised.base_BTW.to(found.base_BTW), found.base_BTW) / found.tolerance_BT
        share = float((far_BT <= SMALL).double().mean())
        if share < ALIKE_POSITIONS and (rounding := self.rounding(found)) > COARSE:
            share = float((far_BT <= ROUNDINGS * rounding / TOLERANCES[torch.float32][0]).double().mean())
        return share >= ALIKE_POSITIONS

    def doubles(self, found: Moved, precision: Precision) -> Moved:
        """The probe in float64."""
        base_BTW, changed_BTW = (
            self.logits(found.mode, found.probe, changed=changed, dtype=torch.float64, precision=precision)
            for changed in (False, True)
        )
        return self.moved(
            found.mode, found.probe, base_BTW, changed_BTW, dtype=torch.float64, raised=precision.raised
        )

    def random(self, found: Moved) -> Finding | None:
        """Whether the protected logits of a probe's inputs change when the inputs are tried again."""
        protected_BT = found.probe.protected_BT().to(found.base_BTW.device)
        for changed, before_BTW in ((False, found.base_BTW), (True, found.changed_BTW)) * REPEATS:
            again_BT = movement(self.again(found, changed=changed), before_BTW)
            if bool((again_BT > found.tolerance_BT)[protected_BT].any()):
                words = "the same ids give logits that differ, with all random generators seeded alike"
                by = f"by {float(found.moved_BT.max()):.3g}; {found.mode}"
                return Finding(NONDETERMINISTIC, f"{words} ({by})")
        return None

    def is_by_draws(self, found: Moved) -> bool:
        """Whether a movement comes from random numbers dealt otherwise. If so, constants replace them from now on.

        As many numbers are drawn for both inputs if a movement is a leak. Otherwise it must vanish with constants.
        """
        if found.mode in self.tried.constant:
            return False
        as_drawn = (Draws(), Draws())
        self.with_draws(found, *as_drawn)
        if as_drawn[0].drawn == as_drawn[1].drawn:
            return False
        if any(bool(self.with_draws(found, Draws(level), Draws(level)).counts_BT.any()) for level in LEVELS):
            return False
        self.tried.constant.add(found.mode)
        return True

    def with_draws(self, found: Moved, for_base: Draws, for_changed: Draws) -> Moved:
        """A probe once more, in the same precision, with random numbers noted or replaced."""
        base_BTW, changed_BTW = (
            self.logits(
                found.mode,
                found.probe,
                changed=changed,
                dtype=found.dtype,
                precision=Precision(raised=True) if found.raised else None,
                draws=draws,
            )
            for changed, draws in ((False, for_base), (True, for_changed))
        )
        return self.moved(found.mode, found.probe, base_BTW, changed_BTW)

    def to_explain(self, found: Moved, *, strictly: bool) -> torch.Tensor:
        """The movements (B, T) that need an explanation if they vanish in float64.

        Unless `strictly`, those below 1% of the scale and SMALL_NATS do not: a model gains next to nothing by them.
        """
        if strictly:
            return found.counts_BT
        return found.moved_BT > (SMALL * found.tolerance_BT).clamp(max=SMALL_NATS)

    def unexplained(
        self, found: Moved, among_BT: torch.Tensor, sizes: Sequence[float] = (JITTER,)
    ) -> torch.Tensor:
        """Those of some movements (B, T) that no change of the parameters in their last digits causes, about as far.

        Such a movement has to come again with the same change, and from logits computed afresh, because noise that is
        drawn anew at each call would otherwise explain itself.
        """
        left_BT = among_BT.clone()
        fresh = {changed: self.again(found, changed=changed) for changed in (False, True)}
        for number in range(JITTERS):
            changed = number % 2 == 1
            first_BTW = found.changed_BTW if changed else found.base_BTW
            explained_BT = left_BT.clone()
            for _ in range(REPEATS):
                jitter = (sizes[number // 2 % len(sizes)], number)
                jittered_BTW = self.logits(found.mode, found.probe, changed=changed, jitter=jitter)
                caused_BT = movement(jittered_BTW, first_BTW).minimum(movement(jittered_BTW, fresh[changed]))
                explained_BT &= caused_BT >= EXPLAINED * found.moved_BT
                if not bool(explained_BT.any()):
                    break
            left_BT &= ~explained_BT
            if not bool(left_BT.any()):
                break
        return left_BT

    def persisting(self, found: Moved, sizes: Sequence[float] = GROWING) -> torch.Tensor:
        """The movements (B, T) that stay the same whatever the parameters' last digits are: rounding would not."""
        difference_BTW = found.changed_BTW - found.base_BTW
        unlike_BT = torch.zeros_like(found.moved_BT, dtype=torch.long)
        for number in range(JITTERS):
            base_BTW, changed_BTW = (
                self.logits(
                    found.mode,
                    found.probe,
                    changed=changed,
                    jitter=(sizes[number % len(sizes)], number),
                )
                for changed in (False, True)
            )
            unlike_BT += movement(changed_BTW - base_BTW, difference_BTW) > ALIKE * found.moved_BT
            if not bool((found.counts_BT & (unlike_BT <= UNLIKE)).any()):
                break
        return found.counts_BT & (unlike_BT <= UNLIKE)

    def leak(self, found: Moved, among_BT: torch.Tensor) -> Finding:
        """A leak at one of some positions, and whether it comes from later tokens, other rows or an earlier call."""
        return Finding(LEAKING, self.describe(found, "sees", among_BT))

    def describe(self, found: Moved, verb: str, among_BT: torch.Tensor) -> str:
        """The one of some positions that moved most, and with what."""
        probe = found.probe
        rows, length = probe.base_BT.shape
        row, position = divmod(found.worst(among_BT), length)
        cut = int(probe.cut_B[row])
        source = "an earlier call"
        if probe.changed_BT is not probe.base_BT:
            source = "an earlier call" if probe.in_turn else "other rows of the batch"
            if position < cut < length:
                alone_BT = probe.base_BT.clone()
                alone_BT[row] = probe.changed_BT[row]
                alone = replace(probe, changed_BT=alone_BT, before_changed=probe.before)
                logits = (self.again(found, changed=changed, probe=alone) for changed in (False, True))
                moved = self.moved(found.mode, alone, *logits)
                if bool(moved.counts_BT[row, position]):
                    source = f"tokens from position {cut} on"
        whose, shape = f"row {row}", f"{rows} rows of {length}"
        if probe.in_turn:
            whose, shape = f"call {row + 1}", f"one row of {length}"
        where = f"position {position} of {whose} {verb} {source} ({found.mode}, {shape}"
        return where + (", parameters that are zero filled)" if probe.filled else ")")
