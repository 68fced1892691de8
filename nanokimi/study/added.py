"""Arms that the user adds to a study: with `--arm`, written as for `compare`, and with `--plugin`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nanokimi.compare.size import parameters, solve_width
from nanokimi.config import OptimConfig, RunConfig, VariantConfig
from nanokimi.config.arms import arm_configs, arm_words, slug, with_arm
from nanokimi.config.parsing import nearest, require_setting, settings, with_changes, with_parsed
from nanokimi.config.rules import validate
from nanokimi.config.rules_variant import is_plugin
from nanokimi.errors import UserError
from nanokimi.measure.cost import model_cost
from nanokimi.runtime.plugins import name_plugin, plugin_setting
from nanokimi.study.ladder import END, START
from nanokimi.study.study import StudyArm

FAMILY_ARMS = {"nanokimi": END, "nanogpt": START}
"""The arm of a study that a family of the configuration stands for."""


def added_arm(arms: Sequence[StudyArm], text: str) -> StudyArm:
    """A user's arm, made from one of the study's: "NAME: from=nanokimi model.attention=gqa optim.lr=2e-3".

    `from` names a family, an arm, or the user's class as FILE.py:CLASS, whose size is not changed. Raises UserError
    if the text cannot be read.
    """
    name, source, given = arm_words(text)
    if slug(name) in [slug(arm.name) for arm in arms]:
        raise UserError(f"--arm '{text}': there is already an arm '{name}': choose another name")
    if is_plugin(source):
        return class_arm(arms[0], name, source, text)
    base = source_of(arms, source, text)
    for key in given:
        require_setting(f"variant.{key}", "--arm")
    try:
        parsed = {f"variant.{key}": value for key, value in given.items()}
        config = with_parsed(base.config, parsed)
        changes = {key: settings(config)[key] for key in parsed}
        about = f"{base.name} with {' '.join(f'{key}={value}' for key, value in given.items())}"
        return resize_arm(base, name, config, changes, about)
    except UserError as error:
        raise UserError(f"--arm '{text}': {error}") from None


def source_of(arms: Sequence[StudyArm], source: str, text: str) -> StudyArm:
    """The study's arm that `from` names."""
    wanted = slug(FAMILY_ARMS.get(source, source))
    for arm in arms:
        if slug(arm.name) == wanted:
            return arm
    known = [*FAMILY_ARMS, *(arm.name for arm in arms)]
    raise UserError(
        f"--arm '{text}': from is {source}: arms of a study are made from {', '.join(known)}{nearest(source, known)}"
    )


def class_arm(base: StudyArm, name: str, source: str, text: str) -> StudyArm:
    """An arm whose model is the user's class, with the other settings of the study's first arm."""
    config = arm_configs(with_arm(replace(base.config, arms={}), text))[name]
    context = config.train.context_length
    target = model_cost(base.config.nanogpt.model, context).params_active
    gap = model_cost(config.module.model, context).params_active / target - 1
    return StudyArm(name, config, {"module.model.source": source}, source, gap, made_from=base.name)


def resize_arm(base: StudyArm, name: str, config: RunConfig, changes: dict[str, Any], about: str) -> StudyArm:
    """An arm made from `base`, whose widths are solved again, so that it has NanoGPT's active parameters.

    The settings in which `base` differs from its own origin stay when other settings are inherited.
    """
    kept = (key.removeprefix("variant.") for key in base.changes if key.startswith("variant."))
    arm = StudyArm(name, config, changes, about, made_from=base.name, holds=(*kept, *base.holds))
    context = config.train.context_length
    target = model_cost(config.nanogpt.model, context).params_active
    model = config.variant.model
    if "variant.model.intermediate_size" in changes or "variant.model.moe_intermediate_size" in changes:
        validate(config)
        return replace(arm, size_gap=model_cost(model, context).params_active / target - 1)
    widths = {name: getattr(VariantConfig(), name) for name in ("intermediate_size", "moe_intermediate_size")}
    # find mistakes in all other settings before the widths are solved for
    validate(replace(config, variant=replace(config.variant, model=replace(model, **widths))))
    solved = solve_width(model, parameters("active_params", context), target)
    whole = replace(config, variant=replace(config.variant, model=solved.model))
    return replace(arm, config=validate(whole), changes={**changes, **solved.changes}, size_gap=solved.gap)


def plugged_arm(arms: Sequence[StudyArm], spec: str) -> StudyArm:
    """NanoKimi (or the first arm, if NanoKimi is not one) with the user's class as a part: --plugin FILE.py:NAME."""
    base = next((arm for arm in arms if arm.name == END), arms[0])
    plugin = name_plugin(spec)
    group, setting = plugin_setting(plugin)
    if setting == "source":
        raise UserError(f'--plugin {spec} is a whole model: add it with --arm "NAME: from={spec}"')
    key = f"variant.{group}.{setting}"
    changes: dict[str, Any] = {key: plugin.name}
    about = f"{base.name} with {plugin.name}"
    clips = base.config.variant.optim.name == "muonclip"
    if key.endswith("attention") and clips and not hasattr(plugin.cls, "rescale_heads_"):
        changes |= {"variant.optim.name": "muon", "variant.optim.qk_clip_tau": OptimConfig().qk_clip_tau}
        about += ", and without QK-Clip, which it has no rescale_heads_ for"
    name = f"{base.name} with {plugin.name}"
    return resize_arm(base, name, with_changes(base.config, changes), changes, about)
