"""Configurations as files: finding presets, reading YAML with command-line overrides, writing it back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any

from nanokimi.config.arms import arm_configs, arms_of_pair, trained_families
from nanokimi.config.composed import composed
from nanokimi.config.parsing import check_keys, expand, merged, nearest, plain, with_content, with_options
from nanokimi.config.rules import validate
from nanokimi.config.schema import FAMILIES, DatasetConfig, ModelName, RunConfig, VariantFamily
from nanokimi.errors import UserError

SHARES = ("val_fraction", "test_fraction")


def presets() -> dict[str, list[Path]]:
    """The files of every preset of the package. A folder of presets is one preset, and so is each of its files."""
    folder = Path(str(resources.files("nanokimi") / "presets"))
    found = {path.stem: [path] for path in folder.glob("*.yaml")}
    for path in sorted(folder.glob("*/*.yaml")):
        found.setdefault(path.parent.name, []).append(path)
        found[f"{path.parent.name}/{path.stem}"] = [path]
    return found


def preset_names() -> list[str]:
    """The names of the presets, without the single files of folders."""
    return sorted(name for name in presets() if "/" not in name)


def find_configs(names: str) -> list[Path]:
    """The files for names of presets and paths, separated by commas. Raises UserError naming the nearest preset."""
    known, found = presets(), []
    # unlike Path.is_file, os.path.isfile raises no error where the name is too long for a file
    for name in [names] if os.path.isfile(names) else names.split(","):
        if os.path.isfile(name):
            found.append(Path(name))
        elif name in known:
            found += known[name]
        elif os.path.isdir(name):
            raise UserError(
                f"--config {name} is a folder: name a YAML file, for example {Path(name) / 'config.yaml'}"
            )
        else:
            raise UserError(f"--config {name} is neither a file nor a preset{nearest(name, preset_names())}")
    return found


def load_config(
    name: str, overrides: Sequence[str] = (), *, alone: bool = False, inherit: bool = False
) -> RunConfig:
    """Read a preset or file, apply overrides such as `--nanokimi.optim.lr 2e-3` (or `=2e-3`), and check the result.

    With `alone`, only the model that `model` names is trained, and words such as `--lr` are settings of it. Several
    names are separated by commas, and later files override earlier ones. With `inherit`, a variant of which the files
    say nothing is the files' NanoGPT instead of one of the default sizes. Raises UserError with one line that says what
    is wrong.
    """
    content: dict[str, Any] = {}
    paths = find_configs(name)
    for path in paths:
        content = merged(content, _read_settings(path))
    config = with_content(RunConfig(), content, f"{', '.join(map(str, paths))}: ")
    if inherit and config.variant == VariantFamily():
        config = replace(config, variant=composed(replace(config, model="nanogpt")).variant)
    families = families_of(config, overrides, alone)
    config = without_shares_of_preset(with_options(config, overrides, families), expand(overrides, families))
    try:
        validate(config)
        arm_configs(config)  # refuses impossible arms
        return config
    except UserError as error:
        raise UserError(f"{error} (settings: {name})") from None


def without_shares_of_preset(config: RunConfig, options: Sequence[str]) -> RunConfig:
    """The configuration without a preset's shares of the text, if the command line names nanoGPT's split.

    Shares that the command line names as well stay, and are refused.
    """
    named = {option.removeprefix("--").partition("=")[0] for option in options}
    if config.dataset.split != "nanogpt" or "dataset.split" not in named:
        return config
    usual = DatasetConfig()
    shares = {name: getattr(usual, name) for name in SHARES if f"dataset.{name}" not in named}
    return replace(config, dataset=replace(config.dataset, **shares))


def families_of(config: RunConfig, overrides: Sequence[str], alone: bool) -> list[ModelName]:
    """The families of the arms that are trained: all of the configuration's or, if `alone`, that of its `model`."""
    if not alone:
        return trained_families(config)
    values = [after.removeprefix("--model=") for after in overrides if after.startswith("--model=")]
    values += [value for word, value in zip(overrides, overrides[1:], strict=False) if word == "--model"]
    return [name for name in FAMILIES if name == (values or [config.model])[0]] or [config.model]


def _read_settings(path: Path) -> dict[str, Any]:
    """The content of a settings file. Raises UserError for unknown keys."""
    from nanokimi.config.safe_yaml import read_yaml

    content = read_yaml(path)
    if content is not None and not isinstance(content, dict):
        raise UserError(
            f"{path} holds {type(content).__name__}, not settings: expected lines such as 'seed: 1'"
        )
    content = arms_of_pair(content or {})
    check_keys(content, str(path))
    return content


def config_text(config: RunConfig) -> str:
    """A configuration as YAML from which `load_config` reads the same values."""
    import yaml

    return str(yaml.safe_dump(plain(asdict(config)), sort_keys=False, allow_unicode=True))


def save_config(config: RunConfig, path: Path) -> None:
    """Write a configuration to a file from which `load_config` reads the same values."""
    from nanokimi.runtime.files import write_atomic

    write_atomic(path, config_text(config))


def refuse_another_kind(command: str, folder: Path) -> None:
    """Raise UserError if the run in `folder` is not one that `command`, train or compare, continues."""
    if sum((folder / name / "config.yaml").is_file() for name in FAMILIES) >= 2:
        raise UserError(
            f"{folder} was begun by an earlier version: repeat it with nanokimi compare --config "
            f"{folder / 'config.yaml'}"
        )
    is_comparison = any(folder.glob("*/seed-*/config.yaml"))
    if command == "train" and is_comparison:
        raise UserError(
            f"{folder} is a comparison: continue it with nanokimi compare --resume --out {folder}"
        )
    if command == "compare" and not is_comparison and (folder / "metrics.jsonl").exists():
        raise UserError(f"{folder} is a single run: continue it with nanokimi train --resume --out {folder}")
