"""`--resume`: which run is continued, with which configuration, and whether it was started with that one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanokimi.cli.options import choose_config, default_folder, user_path
from nanokimi.cli.plugins import inherits_nanogpt, with_plugins, words_for_model
from nanokimi.config import (
    BUDGETS,
    DISPLAY_NAMES,
    FAMILIES,
    FREE_WHEN_RESUMED,
    DatasetConfig,
    RunConfig,
)
from nanokimi.config.arms import (
    DEFAULT_ARMS,
    one_arm,
    only_arms,
    refuse_word_of_one,
    slug,
    with_arm,
    with_arm_options,
)
from nanokimi.config.files import load_config, refuse_another_kind
from nanokimi.config.ignored import refuse_ignored, refuse_overridden, split_arm_words
from nanokimi.config.parsing import settings, with_changes, with_options
from nanokimi.config.rules import validate
from nanokimi.errors import UserError
from nanokimi.pretrained import run_path

UNSET = (None, "auto", "")
CHANGES_ARMS = ("compare", "sweep")
"""Commands whose arms are those of the configuration, and may be changed by --arm."""
BUDGET_KEYS = [f"train.{budget}" for budget in BUDGETS]


@dataclass(frozen=True)
class ArmWords:
    """The arms on a command line: those that --arm adds (or, for train, names), those that --arms keeps; new parts."""

    added: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    """FILE.py:NAME of the user's parts."""


def with_arms(config: RunConfig, command: str, words: ArmWords) -> RunConfig:
    """The configuration with these arms, or for `train` that of the one arm. Raises UserError for an unknown arm."""
    for text in words.added:
        name, colon, _ = text.partition(":")
        if colon:
            config = with_arm(config, text)
        elif command != "train":
            raise UserError(
                f"--arm '{text}': expected \"NAME: from=FAMILY ...\"; --arms chooses among known ones"
            )
        if command == "train":
            config = one_arm(config, name.strip(), "--arm")
    return only_arms(config, list(words.only)) if words.only else config


def configured(
    command: str, options: dict[str, object], rest: list[str], arms: ArmWords
) -> tuple[str, RunConfig]:
    """The name of the configuration, and the configuration with its settings and arms.

    Raises UserError for what cannot be, and for what the command would ignore.
    """
    from nanokimi.data.own_parts import fitted_to_data

    chosen, config = _configured(command, options, rest, arms)
    return chosen, fitted_to_data(config, rest)


def _configured(
    command: str, options: dict[str, object], rest: list[str], arms: ArmWords
) -> tuple[str, RunConfig]:
    alone = command == "train"
    if alone and not arms.added:
        rest = [*rest, *words_for_model(rest, arms.plugins)]
        chosen, config = choose_config(options, rest, alone=True, inherit=inherits_nanogpt())
        refuse_ignored(command, config, rest)
        return chosen, with_plugins(config, arms.plugins, alone=True)
    shared, of_arm = split_arm_words(rest)
    chosen, base = choose_config(options, shared, inherit=inherits_nanogpt())
    if command == "sweep" and "model" in options:
        base = of_family(base, str(options["model"]))
    config = with_arms(base, command, arms)
    if alone:
        config = validate(with_options(config, of_arm, [config.model]))
        refuse_overridden(base, config, shared, str(arms.added[0]).partition(":")[0])
    else:
        if of_arm and command in CHANGES_ARMS and len(config.arms or DEFAULT_ARMS) > 1:
            refuse_word_of_one(config, of_arm)
        config = with_arm_options(config, of_arm)
    refuse_ignored(command, config, shared)
    return chosen, with_plugins(config, arms.plugins, alone=alone)


def of_family(config: RunConfig, family: str) -> RunConfig:
    """The configuration with one arm, that of the family in `sweep --model`. Raises UserError for an unknown one."""
    if family not in FAMILIES:
        raise UserError(f"--model is {family}: expected one of {', '.join(FAMILIES)}")
    return replace(config, arms={DISPLAY_NAMES[family]: {"from": family}})


def plan_run(
    command: str, options: dict[str, object], rest: list[str], arms: ArmWords
) -> tuple[RunConfig, Path, bool]:
    """(configuration, folder, whether a run is continued) for `train` and `compare`.

    Raises UserError if there is no run to resume, or if it was started with other settings.
    """
    out = Path(str(options["out"])) if "out" in options else None
    resume = "resume" in options
    if resume and out is None:
        raise UserError("--resume needs --out DIR, the folder of the interrupted run")
    if "allow_changes" in options and not resume:
        raise UserError("--allow-changes is only for --resume: a new run takes any settings")
    if resume and out is not None and (out / "config.yaml").is_file():
        return resumed_config(command, out, options, rest, arms), out, True
    if resume and not rest and "config" not in options:
        raise UserError(
            f"{out} holds no run to resume: it has no config.yaml; with --config or --data a run is started there"
        )
    chosen, config = configured(command, options, rest, arms)
    first = command if command == "compare" else slug(config.name) or config.model
    return config, out or default_folder(first, chosen), False


def begin_with(options: dict[str, object], rest: list[str]) -> None:
    """`--init-from RUN`: take settings that are not given from that run, and its tokenizer for another text.

    Raises UserError if it is no run's folder.
    """
    if "init_from" not in options:
        return
    folder = run_path(user_path("--init-from", str(options.pop("init_from"))))
    if not (folder / "config.yaml").is_file():
        raise UserError(f"--init-from {folder} is not a run folder: it has no config.yaml")
    options.setdefault("config", str(folder / "config.yaml"))
    given = {word.partition("=")[0] for word in rest}
    one, several = given & {"--data", "--dataset.path"}, given & {"--dataset.sources", "--sources"}
    if one and not several:  # the text that is given replaces the run's
        rest.append("--dataset.sources=[]")
    if several and not one:
        rest.append("--dataset.path=")
    if (one or several) and not given & {"--dataset.tokenizer", "--tokenizer"}:
        from nanokimi.train.weights import find_data

        rest.append(f"--dataset.tokenizer={(find_data(folder) / 'tokenizer.json').resolve()}")
        rest.append(f"--dataset.vocab_size={DatasetConfig.vocab_size}")  # a tokenizer's file has its own
    rest.append(f"--train.init_from={folder.resolve()}")


def resumed_config(
    command: str, folder: Path, options: dict[str, object], rest: list[str], arms: ArmWords
) -> RunConfig:
    """The configuration to continue the run in `folder` with."""
    refuse_another_kind(command, folder)
    path = str(folder / "config.yaml")
    saved = load_config(path)
    arms = replace(arms, plugins=())  # they are in it already; the option only names the file
    if not rest and "config" not in options and arms == ArmWords():
        return saved
    _, given = configured(command, {"config": path, **options}, rest, arms)
    changes = differences(saved, given)
    named = [key for key in changes if key not in FREE_WHEN_RESUMED]
    if named and "allow_changes" not in options:
        key = next((one for one in named if changes[one] is not None), named[0])
        raise UserError(
            f"the run in {folder} has {key} {settings(saved)[key]}, not {changes[key]}: leave it out, or resume with "
            "--allow-changes"
        )
    return validate(with_changes(saved, changes))


def differences(saved: RunConfig, given: RunConfig) -> dict[str, Any]:
    """The settings of `given`, by dotted key, that differ from those of `saved`, apart from those left open.

    Budgets are never left open: one is given, which makes the others null.
    """
    from nanokimi.data.sources import with_absolute_paths

    given = replace(given, dataset=with_absolute_paths(given.dataset))
    then, now = settings(saved), settings(given)
    return {
        key: value
        for key, value in now.items()
        if value != then.get(key) and not (value in UNSET and key in then and key not in BUDGET_KEYS)
    }
