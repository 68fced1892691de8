"""`--plugin FILE.py:NAME`: classes of the user's own on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nanokimi.config import RunConfig
from nanokimi.config.arms import arm_configs
from nanokimi.config.rules_variant import plugins_of
from nanokimi.errors import UserError
from nanokimi.runtime.plugins import name_plugin, named_plugins, plugin_setting

TRAINING_VERBS = ("train", "compare", "sweep", "ladder")  # take settings: a plugin is one
OPENING_VERBS = ("sample", "evaluate", "audit", "prune")  # open runs, which say where their plugins belong


def take_plugins(verb: str, arguments: list[str]) -> list[str]:
    """Run the files that --plugin names, and put their classes into the family of a run to be trained."""
    if verb not in TRAINING_VERBS + OPENING_VERBS:
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
        if verb in TRAINING_VERBS:
            rest.append(setting)
    return rest


def name_arm_sources(texts: Iterable[str]) -> list[str]:
    """Run the files that --arm names with from=FILE.py:CLASS; the words as configurations keep them."""
    named = []
    for text in texts:
        found = re.search(r"\bfrom=(\S+\.py:\w+)", text)
        named.append(text.replace(found[1], name_plugin(found[1]).name) if found else text)
    return named


def refuse_unused_plugins(config: RunConfig, *, arms: bool) -> None:
    """A class that none of the arms (without `arms`: not the one model that is trained) uses would be ignored."""
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
