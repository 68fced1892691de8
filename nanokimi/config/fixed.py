"""The settings that a search keeps fixed: what else an arm's loss depends on, and which of it is different now.

A search records them by name, as `settings` gives them, so that a later comparison can tell whether an arm is still the
one that was searched.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nanokimi.config.composed import composed
from nanokimi.config.parsing import all_keys, settings, with_content
from nanokimi.config.rules_variant import dense_width
from nanokimi.config.schema import RunConfig, VariantConfig
from nanokimi.errors import UserError

SHARED = (
    "train.context_length",
    "train.batch_size",
    "train.dtype",
    "train.init_from",
    "dataset.tokenizer",
    "dataset.vocab_size",
    "dataset.characters",
    "dataset.fraction",
)
"""Settings that all arms share and that a loss depends on, beside the text and the number of steps."""
SPLIT = ("dataset.split", "dataset.val_fraction", "dataset.test_fraction")
"""How the text is cut into parts, which says on what part of it a search has chosen."""
DERIVED = ("model.vocab_size", "model.max_position_embeddings")
"""Settings of a model that follow from the text and the context."""


def fixed_settings(arm: RunConfig, searched: Collection[str]) -> dict[str, Any]:
    """The settings of an arm that its loss depends on, without those that were `searched` (without the family)."""
    own = {f"{arm.model}.{key}": value for key, value in _of_family(arm, searched).items()}
    flat = settings(arm)
    return {"model": arm.model, **own, **_shared(arm), **{key: flat[key] for key in SPLIT}}


def config_of(recorded: Mapping[str, Any]) -> RunConfig:
    """The configuration with recorded settings. The others, which a later version may have added, have their defaults.

    Raises UserError for a value of the wrong type. Names that no setting has are ignored.
    """
    content: dict[str, Any] = {}
    for key, value in recorded.items():
        if key not in all_keys():
            continue
        *groups, name = key.split(".")
        group = content
        for part in groups:
            group = group.setdefault(part, {})
        group[name] = value
    return with_content(RunConfig(), content)


def differing(arm: RunConfig, then: RunConfig, searched: Collection[str]) -> list[str]:
    """The fixed settings, without the family, of which an arm has other values than its configuration in the search.

    An arm of another family is compared as the variant with the same parts. `model` stands for all settings of a model
    that cannot be.
    """
    here, there, found = arm, then, []
    if arm.model != then.model:
        here, there = _in_parts(arm), _in_parts(then)
    now, before = _of_family(here, searched), _of_family(there, searched)
    if here.model != there.model:
        now, before = ({k: v for k, v in one.items() if k.startswith("optim.")} for one in (now, before))
        found = ["model"]
    now, before = now | _shared(arm), before | _shared(then)
    if "auto" in (now["train.dtype"], before["train.dtype"]):  # not known on what machine
        del now["train.dtype"], before["train.dtype"]
    return found + [key for key in {**before, **now} if now.get(key) != before.get(key)]


def differing_split(config: RunConfig, recorded: Mapping[str, Any]) -> list[str]:
    """The settings by which a text is cut otherwise than in a search of the same text, if the search recorded them."""
    if not recorded.keys() >= set(SPLIT):
        return []  # a file of an earlier version
    there, here = (_cut(settings(one)) for one in (config_of(recorded), config))
    return [key for key in SPLIT if key in there.keys() & here.keys() and there[key] != here[key]]


def _cut(flat: Mapping[str, Any]) -> dict[str, Any]:
    """How a text is cut, without what has no effect: nanoGPT's split has no shares; a test part without one copies."""
    if flat["dataset.split"] == "nanogpt":
        return {"dataset.split": "nanogpt"}
    cut = {key: flat[key] for key in SPLIT}
    if cut["dataset.test_fraction"] is None:
        cut["dataset.test_fraction"] = cut["dataset.val_fraction"]
    return cut


def _of_family(arm: RunConfig, searched: Collection[str]) -> dict[str, Any]:
    """The settings of an arm's model and optimizer, without the family."""
    left_out = {*searched, *DERIVED}
    own = {
        key.removeprefix(f"{arm.model}."): _without_folder(value)
        for key, value in settings(arm).items()
        if key.startswith(f"{arm.model}.")
    }
    return {key: value for key, value in own.items() if key not in left_out}


def _shared(arm: RunConfig) -> dict[str, Any]:
    flat = settings(arm)
    return {key: _without_folder(flat[key]) for key in SHARED}


def _without_folder(value: Any) -> Any:
    """The value; of a path, such as that of a tokenizer or of a class of the user's, only the name."""
    return Path(value).name if isinstance(value, str) else value


def _in_parts(arm: RunConfig) -> RunConfig:
    """The arm as a variant whose dense layers' width is a number; as it is if there is no such variant."""
    try:
        arm = composed(arm)
    except UserError:
        return arm
    model = arm.family.model
    if not isinstance(model, VariantConfig):
        return arm
    sized = replace(model, intermediate_size=dense_width(model))
    return replace(arm, variant=replace(arm.variant, model=sized))
