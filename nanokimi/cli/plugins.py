"""`--plugin FILE.py:NAME`: the user's own classes on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nanokimi.config import RunConfig
from nanokimi.config.arms import arm_configs
from nanokimi.config.rules_variant import plugins_of
from nanokimi.errors import UserError
from nanokimi.runtime.plugins import name_plugin, named_plugins, plugin_setting

TRAINING_COMMANDS = ("train", "compare", "sweep", "ladder")  # take a plugin as a setting
OPENING_COMMANDS = (
    "sample",
    "evaluate",
    "audit",
    "prune",
)  # open runs, which know where their plugins belong


def take_plugins(command: str, arguments: list[str]) -> list[str]:
    """Run the files that --plugin names; returns the other arguments, with the classes as settings of a training."""
    if command not in TRAINING_COMMANDS + OPENING_COMMANDS:
        return arguments
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
        setting = plugin_setting(name_plugin(spec))
        if command == "ladder" or command not in TRAINING_COMMANDS:
            continue  # each of a ladder's plugins makes an arm of its own
        key = setting.partition("=")[0]
        if any(word.startswith(f"{key}=") for word in rest):
            raise UserError(
                f"--plugin {spec}: another one is {key.removeprefix('--')} already: give one of them"
            )
        rest.append(setting)
    return rest


def name_arm_sources(texts: Iterable[str]) -> list[str]:
    """Run the files that --arm names with from=FILE.py:CLASS; returns the texts as a configuration keeps them."""
    named = []
    for text in texts:
        found = re.search(r"\bfrom=(\S+\.py:\w+)", text)
        named.append(text.replace(found[1], name_plugin(found[1]).name) if found else text)
    return named


def refuse_unused_plugins(config: RunConfig, *, arms: bool) -> None:
    """Raises UserError for a class that no arm uses; without `arms`, that the one trained model does not use."""
    named = named_plugins()
    if not named:
        return
    trained = arm_configs(config).values() if arms else [config]
    used = {name for one in trained for name in plugins_of(one.family)}
    for spec in named:
        name = spec.replace("\\", "/").rpartition("/")[2]
        if name not in used:
            raise UserError(
                f'--plugin {name} has no effect: no arm is made of it (--model variant or module, or --arm "NAME: '
                'from=variant")'
            )
