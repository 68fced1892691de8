"""THE LADDER: from NanoGPT to NanoKimi one change at a time, back again, and architecture times optimizer.

An arm is a set of components. Each component is plain data: the settings that it takes over from NanoKimi's part of the
configuration, what it needs below it, and what holds while it is missing. Every arm has NanoGPT's active parameters
and its own tuned learning rate. In a full search the four corners (either architecture with either optimizer) are tuned
with the same search, and every other arm inherits from one of them. The search then chooses the schedule of all arms,
so WSD is not a component of the additive design.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from nanokimi.compare.size import parameters, solve_width
from nanokimi.config import OptimConfig, RunConfig, VariantFamily
from nanokimi.config.composed import gpt_as_variant, kimi_as_variant
from nanokimi.config.parsing import with_changes
from nanokimi.config.rules import validate
from nanokimi.errors import UserError
from nanokimi.measure.cost import model_cost
from nanokimi.study.space import COSINE, KEYS, schedule_settings
from nanokimi.study.study import StudyArm, comparison_entry

START, END, MUON_START, ADAMW_END = "NanoGPT", "NanoKimi", "NanoGPT with Muon", "NanoKimi with AdamW"


@dataclass(frozen=True)
class Component:
    """One change on the way from NanoGPT to NanoKimi."""

    name: str
    family: str
    """Either architecture or optimizer."""
    model: tuple[str, ...] = ()
    """Settings of the model that take NanoKimi's values."""
    optim: tuple[str, ...] = ()
    """Settings of the optimizer that take NanoKimi's values."""
    instead: dict[str, Any] = field(default_factory=dict)
    """Settings of the optimizer with the values that this component gives them; a later component may change them."""
    needs: tuple[str, ...] = ()
    missing_model: dict[str, Any] = field(default_factory=dict)
    """Settings of the model in an arm that lacks this component but has all that it needs."""
    missing_optim: dict[str, Any] = field(default_factory=dict)
    """Settings of the optimizer in such an arm."""


COMPONENTS = (
    # without biases, if there were any
    Component("RMSNorm", "architecture", model=("norm", "norm_eps", "bias")),
    Component("RoPE", "architecture", model=("positions", "rope_theta")),
    Component("SwiGLU", "architecture", model=("feed_forward",)),
    Component("untied head", "architecture", model=("tie_word_embeddings",)),
    Component("flat init", "architecture", model=("initialization",)),
    Component(
        "MLA",
        "architecture",
        model=(
            "attention",
            "q_lora_rank",
            "kv_lora_rank",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "v_head_dim",
        ),
        needs=("RoPE",),
    ),
    Component(
        "MoE",
        "architecture",
        model=(
            "experts",
            "n_routed_experts",
            "num_experts_per_tok",
            "first_k_dense_replace",
            "norm_topk_prob",
            "routed_scaling_factor",
        ),
    ),
    Component("shared expert", "architecture", model=("n_shared_experts",), needs=("MoE",)),
    Component(
        "balancing",
        "architecture",
        model=("aux_loss_alpha",),
        optim=("router_bias_update_speed",),
        needs=("MoE",),
        missing_model={"aux_loss_alpha": 0.0},
        missing_optim={"router_bias_update_speed": 0.0},
    ),
    Component(
        "Muon",
        "optimizer",
        optim=(
            "adamw_lr",
            "weight_decay",
            "betas",
            "eps",
            "momentum",
            "nesterov",
            "ns_steps",
            "ns_dtype",
            "grad_clip",
        ),
        instead={"name": "muon"},
    ),
    Component("QK-Clip", "optimizer", optim=("name", "qk_clip_tau", "qk_clip_logits"), needs=("Muon",)),
    Component("WSD", "optimizer", optim=("schedule", "decay_fraction", "min_lr_ratio", "warmup_steps")),
)
BY_NAME = {component.name: component for component in COMPONENTS}
UNDONE_BY = {"tie_word_embeddings": "untied head", "rescale_prenorm_residual": "flat init"}
"""Settings of NanoKimi with which it is like NanoGPT where a component says that it differs."""
NAMES = tuple(BY_NAME)
DESIGNS = ("additive", "leave-one-out", "2x2")
"""The comparisons that a ladder can make: see `additive`, `leave_one_out` and `two_by_two`."""
EVERYTHING = frozenset(NAMES)
ARCHITECTURE = frozenset(component.name for component in COMPONENTS if component.family == "architecture")
OPTIMIZER = EVERYTHING - ARCHITECTURE
SCHEDULE = "WSD"
SAME_OPTIMIZER = {START: ADAMW_END, ADAMW_END: START, MUON_START: END, END: MUON_START}
"""The other corner with the same optimizer."""
CORNERS = {START: frozenset[str](), MUON_START: OPTIMIZER, ADAMW_END: ARCHITECTURE, END: EVERYTHING}


def nearest_corner(components: frozenset[str]) -> str:
    """The corner with the same optimizer whose architecture has most in common with an arm of these components."""
    mostly_kimi = 2 * len(components & ARCHITECTURE) > len(ARCHITECTURE)
    if "Muon" in components:
        return END if mostly_kimi else MUON_START
    return ADAMW_END if mostly_kimi else START


def check_corners(config: RunConfig) -> None:
    """Raises UserError if NanoGPT and NanoKimi differ in a setting that no component changes."""
    gpt, kimi = config.nanogpt.model, config.nanokimi.model
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
        if getattr(gpt, name) != getattr(kimi, name):
            raise UserError(
                f"nanokimi.model.{name} {getattr(kimi, name)} and nanogpt.model.{name} {getattr(gpt, name)} differ: "
                "the ladder needs them equal, because it matches sizes by the feed-forward layers' width"
            )
    if gpt.dropout or kimi.rope_scaling is not None:
        raise UserError("the ladder needs nanogpt.model.dropout 0 and nanokimi.model.rope_scaling null")
    changed = {name for component in COMPONENTS for name in (*component.optim, *component.instead)} | {"lr"}
    for name in (one.name for one in fields(OptimConfig) if one.name not in changed):
        ours, theirs = getattr(config.nanokimi.optim, name), getattr(config.nanogpt.optim, name)
        if ours != theirs:  # every arm would silently train with NanoGPT's
            raise UserError(
                f"nanokimi.optim.{name} {ours} and nanogpt.optim.{name} {theirs} differ: no component of the ladder "
                f"changes it, so leave both at the default, {getattr(OptimConfig(), name)}"
            )


def drop_unsupported(components: frozenset[str]) -> frozenset[str]:
    """The components without those that need a missing one."""
    kept = frozenset(name for name in components if set(BY_NAME[name].needs) <= components)
    return kept if kept == components else drop_unsupported(kept)


def family_with(config: RunConfig, components: frozenset[str]) -> VariantFamily:
    """The arm with these components, not yet matched in size, with the configured learning rate of its optimizer.

    The scale of its initial weights belongs to no component, so it is the configured one of the nearest corner.
    """
    assert drop_unsupported(components) == components
    start, end = gpt_as_variant(config.nanogpt.model), kimi_as_variant(config.nanokimi.model)
    first, last = config.nanogpt.optim, config.nanokimi.optim
    scale = (end if nearest_corner(components) in (ADAMW_END, END) else start).initializer_range
    model: dict[str, Any] = {"initializer_range": scale}
    optim: dict[str, Any] = {"lr": last.lr if "Muon" in components else first.lr}
    known = {f.name for f in fields(OptimConfig)}
    for component in COMPONENTS:
        if component.name in components:
            model |= {name: getattr(end, name) for name in component.model}
            optim |= component.instead | {
                name: getattr(last, name) for name in component.optim if name in known
            }
        elif set(component.needs) <= components:
            model |= component.missing_model
            optim |= component.missing_optim
    if "MoE" not in components:
        optim.pop("router_bias_update_speed", None)
        model.pop("aux_loss_alpha", None)
    return VariantFamily(model=replace(start, **model), optim=replace(first, **optim))


def ladder_arm(config: RunConfig, name: str, components: frozenset[str], about: str = "") -> StudyArm:
    """An arm of the ladder, with NanoGPT's active parameters as nearly as widths allow."""
    context = config.train.context_length
    count = parameters("active_params", context)
    target = model_cost(config.nanogpt.model, context).params_active
    arm = family_with(config, components)
    solved = solve_width(arm.model, count, target)
    whole = replace(config, model="variant", variant=replace(arm, model=solved.model))
    named = tuple(one for one in NAMES if one in components)
    return StudyArm(name, validate(whole), dict(solved.changes), about, solved.gap, components=named)


def additive(
    config: RunConfig, chosen: Sequence[str], searched: bool
) -> tuple[list[StudyArm], list[dict[str, Any]]]:
    """Each component added to all before it, and compared with the arm that lacks it.

    If schedules are searched for all arms, the last component before WSD completes NanoKimi.
    """
    arms = [ladder_arm(config, START, frozenset())]
    comparisons = []
    if searched:
        chosen = [name for name in chosen if name != SCHEDULE]
    for name in chosen:
        components = frozenset([*(arms[-1].components or ()), name])
        if searched and components | {SCHEDULE} == EVERYTHING:
            components = EVERYTHING
        if drop_unsupported(components) != components:
            raise UserError(f"--components: {name} needs {' and '.join(BY_NAME[name].needs)}")
        title = END if components == EVERYTHING else f"+ {name}"
        arms.append(ladder_arm(config, title, components, f"NanoGPT with all components up to {name}"))
        comparisons.append(comparison_entry("additive", f"+ {name}", title, arms[-2].name))
    if len(chosen) > 1:
        comparisons.append(comparison_entry("end to end", "all components together", arms[-1].name, START))
    return arms, comparisons


def leave_one_out(
    config: RunConfig, chosen: Sequence[str], searched: bool
) -> tuple[list[StudyArm], list[dict[str, Any]]]:
    """NanoKimi without one component (and those that need it), compared with NanoKimi.

    If schedules are searched for all arms, NanoKimi without WSD is NanoKimi with a cosine schedule.
    """
    arms, comparisons = [ladder_arm(config, END, EVERYTHING)], []
    for name in chosen:
        components = drop_unsupported(EVERYTHING - {name})
        gone = [one for one in NAMES if one not in components]
        title = f"without {' and '.join(gone)}"
        arm = ladder_arm(config, title, components, f"NanoKimi {title}")
        if searched and name == SCHEDULE:
            cosine = {f"variant.{key}": value for key, value in schedule_settings(COSINE).items()}
            arm = replace(
                arm,
                config=validate(with_changes(arm.config, cosine)),
                holds=KEYS["decay"],
                about="NanoKimi with a cosine",
            )
        arms.append(arm)
        comparisons.append(comparison_entry("leave-one-out", title, title, END))
    return arms, comparisons


def two_by_two(config: RunConfig) -> tuple[list[StudyArm], list[dict[str, Any]]]:
    """Both architectures with both optimizers."""
    arms = [
        ladder_arm(config, START, frozenset()),
        muon_start(config),
        ladder_arm(config, ADAMW_END, ARCHITECTURE, "NanoKimi's model, NanoGPT's optimizer"),
        ladder_arm(config, END, EVERYTHING),
    ]
    comparisons = [
        comparison_entry("2x2", "architecture, with AdamW", ADAMW_END, START),
        comparison_entry("2x2", "architecture, with Muon", END, MUON_START),
        comparison_entry("2x2", "optimizer, for NanoGPT", MUON_START, START),
        comparison_entry("2x2", "optimizer, for NanoKimi", END, ADAMW_END),
        {
            **comparison_entry("2x2", "interaction", END, START),
            "weights": {END: 1, START: 1, MUON_START: -1, ADAMW_END: -1},
            "about": "below zero: architecture and optimizer help each other",
        },
    ]
    return arms, comparisons


def muon_start(config: RunConfig) -> StudyArm:
    """The arm that every ladder has, so that the optimizer's gain is not credited to the architecture."""
    return ladder_arm(config, MUON_START, OPTIMIZER, "NanoGPT's model, NanoKimi's optimizer")


def plan_ladder(
    config: RunConfig, designs: Sequence[str], chosen: Sequence[str], searched: bool = False
) -> tuple[list[StudyArm], list[dict[str, Any]]]:
    """Every arm once, and every comparison, of the chosen designs; `searched` says that schedules are searched for."""
    check_corners(config)
    for name, component in UNDONE_BY.items():
        if getattr(config.nanokimi.model, name):
            raise UserError(
                f"nanokimi.model.{name} is true, so the ladder's '{component}' is none: set it to false"
            )
    arms: dict[str, StudyArm] = {}
    comparisons: list[dict[str, Any]] = []
    parts = {
        "additive": lambda: additive(config, chosen, searched),
        "leave-one-out": lambda: leave_one_out(config, chosen, searched),
        "2x2": lambda: two_by_two(config),
    }
    for design in designs:
        more, judged = parts[design]()
        arms |= {arm.name: arm for arm in more}
        comparisons += judged
    if MUON_START not in arms:
        arms[MUON_START] = muon_start(config)
        base = START if START in arms else END
        comparisons.append(comparison_entry("beside", f"{MUON_START} against {base}", MUON_START, base))
    return list(arms.values()), comparisons


def lineage(config: RunConfig, arms: Sequence[StudyArm]) -> dict[str, StudyArm]:
    """The corner that each arm inherits from in a full search, by the arm's name.

    The corners are searched themselves, and so is an arm with an optimizer that no corner has.
    """
    known = {arm.name: arm for arm in arms}
    found: dict[str, StudyArm] = {}
    for arm in arms:
        name = corner_of(arm, known)
        if name == arm.name:
            continue
        parent = known.get(name) or ladder_arm(config, name, CORNERS[name])
        if kind_of(arm) == kind_of(parent):
            found[arm.name] = parent
    return found


def corner_of(arm: StudyArm, known: dict[str, StudyArm]) -> str:
    """The corner that an arm is, inherits from, or was made from."""
    if arm.inherits is not None:
        return arm.inherits
    if arm.name in CORNERS:
        return arm.name
    if arm.components is not None:
        return nearest_corner(frozenset(arm.components))
    assert arm.made_from is not None, "an arm without components is a user's"
    return corner_of(known[arm.made_from], known)


def kind_of(arm: StudyArm) -> str:
    """The optimizer; Muon with QK-Clip counts as Muon."""
    return "muon" if (name := arm.config.family.optim.name) == "muonclip" else name


def inheritance_tests(arms: Sequence[StudyArm]) -> tuple[list[StudyArm], list[dict[str, Any]]]:
    """Each corner with the settings of the other one with its optimizer (rate tuned again), against its own search."""
    by_name = {arm.name: arm for arm in arms if arm.leaking is None}
    more, comparisons = [], []
    for corner, other in SAME_OPTIMIZER.items():
        if corner in by_name and other in by_name:
            name = f"{corner}, settings of {other}"
            about = f"{corner} with what was found for {other}, its rate tuned"
            more.append(replace(by_name[corner], name=name, about=about, inherits=other))
            comparisons.append(comparison_entry("inheritance", name, name, corner))
    return more, comparisons
