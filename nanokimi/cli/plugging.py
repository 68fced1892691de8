"""`--plug FILE.py:NAME`: classes of the user's own on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nanokimi.config import RunConfig
from nanokimi.config.rules_variant import plugs_of
from nanokimi.errors import UserError
from nanokimi.runtime.plugs import name_plug, named_plugs, plug_setting

TRAINING_VERBS = ("train", "compare", "sweep", "ladder")  # take settings: a plug is one
OPENING_VERBS = ("sample", "evaluate", "audit", "prune")  # open runs, which say where their plugs belong


def plug_in(verb: str, arguments: list[str]) -> list[str]:
    """Run the files that --plug names, and put their classes into the family of a run to be trained."""
    if verb not in TRAINING_VERBS + OPENING_VERBS:
        return arguments
    rest, remaining = [], list(arguments)
    while remaining:
        word = remaining.pop(0)
        option, equals, spec = word.partition("=")
        if option != "--plug":
            rest.append(word)
            continue
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise UserError("option --plug needs a value: FILE.py:NAME")
            spec = remaining.pop(0)
        setting = plug_setting(name_plug(spec))
        if verb in TRAINING_VERBS:
            rest.append(setting)
    return rest


def name_arm_sources(texts: Iterable[str]) -> list[str]:
    """Run the files that --arm names with from=FILE.py:CLASS; the words as configurations keep them."""
    named = []
    for text in texts:
        found = re.search(r"\bfrom=(\S+\.py:\w+)", text)
        named.append(text.replace(found[1], name_plug(found[1]).name) if found else text)
    return named


def refuse_unused_plugs(arms: Iterable[RunConfig]) -> None:
    """A class that none of these arms uses would be ignored."""
    used = {name for arm in arms for name in plugs_of(arm.arm)}
    for spec in named_plugs():
        name = spec.replace("\\", "/").rpartition("/")[2]
        if name not in used:
            raise UserError(
                f'--plug {name} has no effect: no arm is made of it (--model variant or module, or --arm "NAME: '
                'from=variant")'
            )
