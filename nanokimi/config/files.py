"""Configurations as files: finding presets, reading YAML with command-line overrides, writing it back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from nanokimi.config.arms import arm_configs, arms_of_pair
from nanokimi.config.parsing import check_keys, merged, nearest, plain, with_content, with_options
from nanokimi.config.rules import validate
from nanokimi.config.schema import RunConfig
from nanokimi.errors import UserError


def presets() -> dict[str, list[Path]]:
    """The files of every preset that ships with the package; a folder is one, and so is each of its files."""
    folder = Path(str(resources.files("nanokimi") / "presets"))
    found = {path.stem: [path] for path in folder.glob("*.yaml")}
    for path in sorted(folder.glob("*/*.yaml")):
        found.setdefault(path.parent.name, []).append(path)
        found[f"{path.parent.name}/{path.stem}"] = [path]
    return found


def preset_names() -> list[str]:
    """Names of the presets, without the parts of those that consist of several files."""
    return sorted(name for name in presets() if "/" not in name)


def find_configs(names: str) -> list[Path]:
    """The files of presets' names and paths, with commas between them. Raises UserError naming the nearest preset."""
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
            raise UserError(f"--config {name} is no file and no preset{nearest(name, preset_names())}")
    return found


def load_config(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a preset or file, apply overrides such as `--nanokimi.optim.lr 2e-3` (or `=2e-3`), and check the result.

    Several names have commas between them; what a later file says takes the place of what an earlier one does.
    Raises UserError with one line that says what is wrong.
    """
    content: dict[str, Any] = {}
    paths = find_configs(name)
    for path in paths:
        content = merged(content, _read_settings(path))
    config = with_content(RunConfig(), content, f"{', '.join(map(str, paths))}: ")
    config = with_options(config, overrides)
    try:
        validate(config)
        arm_configs(config)  # refuses arms that cannot be
        return config
    except UserError as error:
        raise UserError(f"{error} (settings: {name})") from None


def _read_settings(path: Path) -> dict[str, Any]:
    """What a file says, its keys known."""
    from nanokimi.config.safe_yaml import read_yaml

    content = read_yaml(path)
    if content is not None and not isinstance(content, dict):
        raise UserError(
            f"{path} holds {type(content).__name__}, not settings: expected lines such as 'seed: 1'"
        )
    content = arms_of_pair(content or {})
    check_keys(content, str(path))
    return content


def save_config(config: RunConfig, path: Path) -> None:
    """Write a configuration that `load_config` reads back to the same values."""
    import yaml

    from nanokimi.runtime.files import write_atomic

    write_atomic(path, yaml.safe_dump(plain(asdict(config)), sort_keys=False, allow_unicode=True))
