"""`--plugin FILE.py:NAME`: the user's own classes on the command line, and the arms that they become parts of."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from nanokimi.config import ModuleFamily, RunConfig
from nanokimi.config.arms import (
    DEFAULT_ARMS,
    LONGEST_NAME,
    PARTS,
    arm_config,
    arm_configs,
    with_differences,
)
from nanokimi.config.rules_variant import is_plugin, plugins_of
from nanokimi.errors import UserError
from nanokimi.runtime.plugins import Plugin, load_plugin, name_plugin, named_plugins, place_of, plugin_setting

TRAINING_COMMANDS = ("train", "compare", "sweep")  # make a plugin part of an arm
OPENING_COMMANDS = ("sample", "inspect", "play", "serve", "judge", "evaluate", "audit", "prune")
"""These open runs, which know where their plugins belong."""
ARM_WITH_CODE = re.compile(r"\b(?:from|model\.\w+|optim\.name)=(\S+\.py:\w+)")


def take_plugins(command: str, arguments: list[str]) -> list[str]:
    """Run the files that --plugin names; returns the other arguments, for a training with `--plugin=SPEC` first."""
    if command not in (*TRAINING_COMMANDS, *OPENING_COMMANDS, "ladder"):
        return arguments
    plugins: list[str] = []
    rest, remaining = [], list(arguments)
    while remaining:
        word = remaining.pop(0)
        option, equals, spec = word.partition("=")
        if option != "--plugin":
            rest.append(word)
            continue
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise UserError("option --plugin needs a value: FILE.py:NAME")
            spec = remaining.pop(0)
        plugin_setting(name_plugin(spec))  # refuses what can be no part
        if command in TRAINING_COMMANDS:
            plugins.append(spec)
    return [f"--plugin={spec}" for spec in plugins] + rest


def with_plugins(config: RunConfig, specs: Sequence[str], *, alone: bool) -> RunConfig:
    """The configuration with these classes as parts.

    They replace those of the one model that is trained, if `alone`, or else those of the variant, if an arm is made of
    it. Otherwise they make one more arm from the first one. What they do not replace, and all sizes, are as they were.

    Raises UserError if two are for the same place, and no arm names them.
    """
    in_arms: set[str] = set() if alone else named_by_arms(config)
    plugins = [plugin for plugin in map(name_plugin, specs) if plugin.name not in in_arms]
    require_one_for_each_place(plugins)
    for plugin in plugins:
        if plugin_setting(plugin) == ("model", "source"):
            model = replace(config.module.model, source=plugin.name)
            config = replace(config, module=replace(config.module, model=model))
    parts = [plugin for plugin in plugins if plugin_setting(plugin) != ("model", "source")]
    if not parts:
        return config
    if alone:
        return plugged(config, parts)
    arms = arm_configs(config)
    used = {name for arm in arms.values() for name in plugins_of(arm.family)}
    parts = [plugin for plugin in parts if plugin.name not in used]  # --arm says where the others belong
    specs_of_arms = config.arms or DEFAULT_ARMS
    if any(spec.get("from") == "variant" for spec in specs_of_arms.values()):
        return replace(plugged(replace(config, model="variant"), parts), model=config.model)
    if not parts:
        return config
    first = next(iter(arms))
    spec = {"from": first, **settings_of(arms[first], parts)}
    found = replace(config, arms={**specs_of_arms, name_with(first, parts): spec})
    arm_config(found, found.arms, name_with(first, parts))  # raises UserError if it is impossible
    return found


def require_one_for_each_place(plugins: Sequence[Plugin]) -> None:
    """Raises UserError naming the first class whose place another one has."""
    places = [plugin_setting(plugin) for plugin in plugins]
    for number, place in enumerate(places):
        if place in places[:number]:
            name = plugins[number].name
            raise UserError(f"--plugin {name}: another one is {'.'.join(place)} already: give one of them")


def named_by_arms(config: RunConfig) -> set[str]:
    """FILE.py:NAME, without folders, of the classes that the configuration's arms name."""
    values = [
        value
        for spec in config.arms.values()
        for value in (spec.get("from"), *(one for part in PARTS for one in (spec.get(part) or {}).values()))
    ]
    return {Path(value).name for value in values if isinstance(value, str) and is_plugin(value)}


def words_for_model(words: Sequence[str], specs: Sequence[str]) -> list[str]:
    """The word that makes the first of these models the one that `--model module` trains; none if it is named, too.

    A configuration without it would be refused before `with_plugins` comes to it.
    """
    asked = "--model=module" in words or ("--model", "module") in pairwise(words)
    named = any(word.partition("=")[0] == "--module.model.source" for word in words)
    models = [
        plugin.name for plugin in map(name_plugin, specs) if plugin_setting(plugin) == ("model", "source")
    ]
    return [f"--module.model.source={models[0]}"] if asked and models and not named else []


def plugged(config: RunConfig, plugins: Sequence[Plugin]) -> RunConfig:
    """The configuration of one model with these parts instead of its own."""
    if config.model == "module":
        return config  # `refuse_unused_plugins` speaks of it
    name = config.name if config.model == "variant" else name_with(config.title, plugins)
    names = " and ".join(plugin.name for plugin in plugins)
    return replace(with_differences(config, settings_of(config, plugins), f"--plugin {names}"), name=name)


def settings_of(config: RunConfig, plugins: Sequence[Plugin]) -> dict[str, dict[str, Any]]:
    """The settings of a model with these parts, {"model": {...}, "optim": {...}}, as an arm has them."""
    said: dict[str, dict[str, Any]] = {"model": {}, "optim": {}}
    for plugin in plugins:
        group, setting = plugin_setting(plugin)
        said[group][setting] = plugin.name
        clips = config.model != "variant" and config.family.optim.clips
        if setting == "attention" and clips and not hasattr(plugin.cls, "rescale_heads_"):
            without = config.family.optim.name.removesuffix("clip")
            said["optim"].setdefault("name", without)
            print(
                f"nanokimi: note: {plugin.name} has no rescale_heads_, so its optimizer is {without}, without QK-Clip",
                file=sys.stderr,
            )
    return {group: given for group, given in said.items() if given}


def name_with(title: str, plugins: Sequence[Plugin]) -> str:
    """What a model with these parts is called."""
    classes = " and ".join(plugin.name.rpartition(":")[2] for plugin in plugins)
    return f"{title} with {classes}"[:LONGEST_NAME]


def name_arm_sources(texts: Iterable[str]) -> list[str]:
    """Run the files that --arm names as FILE.py:CLASS; returns the texts as a configuration keeps them."""
    return [
        ARM_WITH_CODE.sub(lambda found: found[0].replace(found[1], name_plugin(found[1]).name), text)
        for text in texts
    ]


def inherits_nanogpt() -> bool:
    """Whether a variant that no file describes takes NanoGPT's sizes: if a part of it is the user's."""
    places = [plugin_setting(name_plugin(spec)) for spec in named_plugins()]
    return any(place != ("model", "source") for place in places)


UNPLACED = 'it is a model unless the class says plugs_into = "attention" or "feed_forward", and '


def refuse_unused_plugins(config: RunConfig, *, arms: bool) -> None:
    """Raises UserError for a class that no arm uses; without `arms`, that the one trained model does not use."""
    named = named_plugins()
    if not named:
        return
    trained = arm_configs(config).values() if arms else [config]
    whole = {one.family.model.source for one in trained if isinstance(one.family, ModuleFamily)}
    used = {name for one in trained for name in plugins_of(one.family)}
    for spec in named:
        name = spec.replace("\\", "/").rpartition("/")[2]
        place = place_of(load_plugin(name))
        if name in whole and place != "model":
            raise UserError(
                f"--plugin {name} has no effect as a whole model, for which it is named here: the class is made to be "
                f"the {place} of one; leave out --model module, or from={name}"
            )
        if name not in used:
            meant = UNPLACED if place == "model" else ""
            raise UserError(
                f"--plugin {name} has no effect: {meant}no arm is made of it (a model: --model module, or --arm "
                f'"NAME: from={name}")'
            )
