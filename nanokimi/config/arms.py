"""Arms: a name, a model, and an optimizer with its schedule. Each arm becomes a configuration of its own.

A file says `arms: {NAME: {from: nanogpt, optim: {name: muon}}}`, a command line `--arm "NAME: from=nanogpt
optim.name=muon"`. `from` is a model family of the configuration, a class of the user's (FILE.py:CLASS), or another arm.
`model` and `optim` hold what differs from it. If they replace a part, settings that only this part reads are reset, and
NanoGPT and NanoKimi become the variant that has their other parts.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

from nanokimi.config.composed import composed_for, with_width_of_replaced
from nanokimi.config.parsing import (
    check_keys,
    expand,
    nearest,
    require_setting,
    settings,
    with_changes,
    with_content,
    with_options,
    with_parsed,
)
from nanokimi.config.replaced import defaults_of_replaced
from nanokimi.config.rules import validate
from nanokimi.config.rules_variant import is_plugin
from nanokimi.config.schema import DISPLAY_NAMES, FAMILIES, ModelName, RunConfig
from nanokimi.errors import UserError

Spec = dict[str, Any]

DEFAULT_ARMS: dict[str, Spec] = {"NanoKimi": {"from": "nanokimi"}, "NanoGPT": {"from": "nanogpt"}}
MOST_ARMS = 16
LONGEST_NAME = 60
PARTS = ("model", "optim")


def arm_configs(config: RunConfig) -> dict[str, RunConfig]:
    """The configuration of each arm, by name, in order, with `model` and `name` set and `arms` empty.

    Raises UserError naming the first arm that is impossible.
    """
    specs = config.arms or DEFAULT_ARMS
    if len(specs) > MOST_ARMS:
        raise UserError(f"arms names {len(specs)}: {MOST_ARMS} at most")
    slugs: dict[str, str] = {}
    for name in specs:
        if not slug(name) or len(str(name)) > LONGEST_NAME:
            raise UserError(f"arms: '{name}' is not a name: use letters and digits, {LONGEST_NAME} at most")
        if slugs.setdefault(slug(name), name) != name:
            raise UserError(f"arms: '{slugs[slug(name)]}' and '{name}' would share a folder: rename one")
    return {name: arm_config(config, specs, name) for name in specs}


def slug(name: str) -> str:
    """An arm's folder: its name in lower-case letters, digits and dashes."""
    return "-".join(re.findall(r"[a-z0-9]+", str(name).lower()))


def arm_config(
    config: RunConfig, specs: dict[str, Spec], name: str, above: tuple[str, ...] = ()
) -> RunConfig:
    """One arm's configuration. `above` are the arms that are made from it."""
    where, spec = f"arms.{name}", specs[name]
    if name in above:
        raise UserError(f"{where} is made from itself: {' -> '.join((*above, name))}")
    if not isinstance(spec, dict) or set(spec) - {"from", *PARTS} or "from" not in spec:
        raise UserError(f"{where}: expected {{from: FAMILY, model: {{...}}, optim: {{...}}}}, got {spec}")
    source = str(spec["from"])
    if source in FAMILIES:
        base = replace(config, model=source, arms={})
    elif is_plugin(source):
        family = replace(config.module, model=replace(config.module.model, source=source))
        base = replace(config, model="module", module=family, arms={})
    elif source in specs:
        base = arm_config(config, specs, source, (*above, name))
    else:
        known = [*FAMILIES, *specs]
        raise UserError(
            f"{where}.from is {source}: name a family, an arm or FILE.py:CLASS{nearest(source, known)}"
        )
    return replace(with_differences(base, spec, where), name=name)


def with_differences(base: RunConfig, spec: Spec, where: str) -> RunConfig:
    """`base` with an arm's settings of its model and optimizer."""
    parts = {part: spec[part] for part in PARTS if spec.get(part)}
    for part, said in parts.items():
        if not isinstance(said, dict):
            raise UserError(f"{where}.{part} is {said}: expected settings with their values")
    if base.model == "module" and "model" in parts:
        parts["model"] = {"arguments": parts["model"]}
    if not parts:
        return base
    base = composed_for(base, parts.get("model", {})) if base.model != "module" else base
    if base.model == "variant" and "model" in parts:
        parts["model"] = with_width_of_replaced(base.variant.model, parts["model"])
    content: dict[str, Any] = {base.model: parts}
    check_keys(content, where)
    forgotten = defaults_of_replaced(base.family, parts)
    kept = {
        f"{base.model}.{part}.{key}": value for part in forgotten for key, value in forgotten[part].items()
    }
    arm = with_content(with_changes(base, kept), content, f"{where}: ")
    try:
        return validate(arm)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def arm_words(text: str, known: Iterable[str] = ()) -> tuple[str, str, dict[str, str]]:
    """The parts of an `--arm`: its name, what it is made from, and its settings as text. Raises UserError.

    An arm of the `known` names may be changed without `from`, which is then empty.
    """
    name, colon, rest = text.partition(":")
    name = name.strip()
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise UserError(f"--arm '{text}': {error}") from None
    given: dict[str, str] = {}
    for key, _, value in (word.partition("=") for word in words):
        if key in given:
            raise UserError(f"--arm '{text}': {key} is given twice")
        given[key] = value
    changes = bool(given) and "from" not in given and name in known
    if not colon or not slug(name) or not (given.get("from") or changes):
        raise UserError(
            f"--arm '{text}': expected \"NAME: from=FAMILY model.SETTING=VALUE optim.SETTING=VALUE\""
            + (f", without from= only to change {' or '.join(known)}" if known else "")
        )
    for key, value in given.items():
        if not value:
            raise UserError(f"--arm '{text}': {key} needs a value, as in {key}=VALUE")
    return name, given.pop("from", ""), given


def with_arm(config: RunConfig, text: str) -> RunConfig:
    """The configuration with an arm added or replaced: "NAME: from=nanogpt optim.name=muon model.hidden_size=64".

    Without `from`, settings of the arm of that name are changed: "NanoGPT: optim.lr=1e-3". Raises UserError if the text
    cannot be parsed.
    """
    specs: dict[str, Spec] = dict(config.arms or DEFAULT_ARMS)
    name, source, given = arm_words(text, specs)
    before = {"from": source} if source else specs[name]
    specs[name] = {key: dict(value) if isinstance(value, dict) else value for key, value in before.items()}
    base = arm_config(config, specs, name)
    if base.model != "module":
        base = composed_for(base, {key.removeprefix("model."): word for key, word in given.items()})
    for key in given:
        if key.partition(".")[0] not in PARTS or "." not in key:
            raise UserError(
                f"--arm '{text}': {key} is not a setting of an arm: name model.SETTING or optim.SETTING"
            )
    for key, value in typed_words(base, given).items():
        part, _, setting = key.partition(".")
        specs[name][part] = {**(specs[name].get(part) or {}), setting: value}
    found = replace(config, arms=specs)
    arm_configs(found)
    return found


def typed_words(base: RunConfig, given: dict[str, str]) -> dict[str, Any]:
    """The values of an arm's settings, parsed as on the command line."""
    of_class = {
        key: word for key, word in given.items() if base.model == "module" and key.startswith("model.")
    }
    full = {key: f"{base.model}.{key}" for key in given if key not in of_class}
    for setting in full.values():
        require_setting(setting, "--arm")
    read = settings(with_parsed(base, {full[key]: given[key] for key in full})) if full else {}
    return {key: read[full[key]] if key in full else argument(key, given[key]) for key in given}


def argument(key: str, word: str) -> Any:
    """The value of an argument of a user's class, parsed as YAML."""
    from nanokimi.config.safe_yaml import parse_yaml

    try:
        return parse_yaml(word)
    except ValueError as error:
        raise UserError(f"--arm: {key} is {word}: {error}") from None


def trained_families(config: RunConfig) -> list[ModelName]:
    """The families that the configuration's arms are made of."""
    found = [origin_of(config, name) for name in config.arms or DEFAULT_ARMS]
    return [family for family in FAMILIES if family in found]


def origin_of(config: RunConfig, name: str) -> ModelName:
    """The family that an arm is made of, in the end; it keeps what it does not replace of it."""
    specs, source = config.arms or DEFAULT_ARMS, name
    seen: set[str] = set()
    while source in specs and source not in seen:  # an arm made from itself is refused elsewhere
        seen.add(source)
        spec = specs[source]
        source = str(spec.get("from")) if isinstance(spec, dict) else ""
    return "module" if is_plugin(source) else cast(ModelName, source)


def refuse_word_of_one(config: RunConfig, options: Sequence[str]) -> None:
    """Raise UserError for options such as `--lr` of one arm where several are trained, with what to type instead."""
    for name in config.arms or DEFAULT_ARMS:
        family = origin_of(config, name)
        with suppress(UserError):
            found = [one.removeprefix(f"--{family}.") for one in expand(options, [family])]
            break
    else:
        return
    word = options[0].partition("=")[0]
    raise UserError(
        f"{word} is a setting of one arm, and several are trained: name the arm, as in "
        f'--arm "{name}: {" ".join(found)}"'
    )


def with_arm_options(config: RunConfig, options: Sequence[str]) -> RunConfig:
    """The configuration with options such as `--lr` for its only arm. Raises UserError if it has several."""
    specs = config.arms or DEFAULT_ARMS
    families = trained_families(config)
    if not options or len(specs) > 1:
        with_options(config, options, families if len(families) > 1 else FAMILIES)  # says what is wrong
        return config
    (name,) = specs
    arm = arm_config(config, specs, name)
    before, after = settings(arm), settings(with_options(arm, options, families))
    spec = {part: dict(specs[name].get(part) or {}) for part in PARTS}
    for key, value in after.items():
        if value != before[key]:
            _, part, setting = key.split(".", 2)
            spec[part][setting] = value
    found = replace(config, arms={name: {**specs[name], **spec}})
    arm_configs(found)
    return found


def only_arms(config: RunConfig, names: list[str], option: str = "--arms") -> RunConfig:
    """The configuration with only these of its arms, in this order; a family's name adds an arm of it if there is none.

    Raises UserError for an unknown name.
    """
    specs = dict(config.arms or DEFAULT_ARMS)
    by_slug = {slug(name): name for name in specs}
    names = [name if name in specs else by_slug.get(slug(name), name) for name in names]
    for i, name in enumerate(names):
        if name in FAMILIES:
            names[i] = DISPLAY_NAMES[name]
            specs.setdefault(names[i], {"from": name})
    require_arms(specs, names, option)
    for name in names:
        source = specs[name].get("from")
        if source in specs and source not in names:
            raise UserError(f"{option}: '{name}' is made from '{source}': name that one, too")
    return replace(config, arms={name: specs[name] for name in names})


def one_arm(config: RunConfig, name: str, option: str) -> RunConfig:
    """The configuration of one of the arms alone. Raises UserError, which names `option`, if it has no such arm."""
    specs = config.arms or DEFAULT_ARMS
    require_arms(specs, [name], option)
    return arm_config(config, specs, name)


def require_arms(specs: Mapping[str, Spec], names: Iterable[str], option: str) -> None:
    """Raises UserError, which names `option`, if one of `names` is not an arm of `specs`."""
    for name in names:
        if name not in specs:
            raise UserError(f"{option}: there is no arm '{name}'{nearest(name, list(specs))}")


def arms_of_pair(content: Any) -> Any:
    """A file's content. The pair of families that earlier versions had (compare.arms) is converted to arms."""
    group = content.get("compare") if isinstance(content, dict) else None
    pair = group.get("arms") if isinstance(group, dict) else None
    if (
        not isinstance(group, dict)
        or not isinstance(pair, list)
        or not all(name in DISPLAY_NAMES for name in pair)
    ):
        return content
    kept = {key: value for key, value in group.items() if key != "arms"}
    arms = {DISPLAY_NAMES[name]: {"from": name} for name in pair}
    return {**content, "compare": kept, "arms": content.get("arms") or arms}
