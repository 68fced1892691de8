"""What `--resume` means: which run, with which configuration, and whether that is the one it was started with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from nanokimi.cli.options import choose_config
from nanokimi.config import ARM_NAMES, FREE_WHEN_RESUMED, RunConfig
from nanokimi.config.files import load_config, settings, with_changes
from nanokimi.errors import UserError

UNSET = (None, "auto", "")


def plan_run(verb: str, options: dict[str, object], rest: list[str]) -> tuple[RunConfig, Path | None, bool]:
    """(configuration, folder or None for the next free one, whether a run is continued) of `train` and `compare`.

    Raises UserError if there is nothing to resume, or if it was started with other settings.
    """
    out = Path(str(options["out"])) if "out" in options else None
    resume = "resume" in options
    if resume and out is None:
        raise UserError("--resume needs --out DIR, the folder of the interrupted run")
    if "allow_changes" in options and not resume:
        raise UserError("--allow-changes belongs to --resume: a new run takes any settings")
    if resume and out is not None and (out / "config.yaml").is_file():
        return resumed_config(verb, out, options, rest), out, True
    if resume and not rest and "config" not in options:
        raise UserError(
            f"{out} holds no run to resume: it has no config.yaml; with --config or --data a run is started there"
        )
    return load_config(choose_config(options, rest), rest), out, False


def resumed_config(verb: str, folder: Path, options: dict[str, object], rest: list[str]) -> RunConfig:
    """The configuration to continue the run in `folder` with."""
    is_comparison = sum((folder / name).is_dir() for name in ARM_NAMES) >= 2
    if verb == "train" and is_comparison:
        raise UserError(
            f"{folder} is a comparison: continue it with nanokimi compare --resume --out {folder}"
        )
    if verb == "compare" and not is_comparison and (folder / "metrics.jsonl").exists():
        raise UserError(f"{folder} is a single run: continue it with nanokimi train --resume --out {folder}")
    path = str(folder / "config.yaml")
    saved = load_config(path)
    given = load_config(str(options.get("config", path)), rest)
    changes = differences(saved, given)
    named = [key for key in changes if key not in FREE_WHEN_RESUMED]
    if named and "allow_changes" not in options:
        key = named[0]
        raise UserError(
            f"the run in {folder} has {key} {settings(saved)[key]}, not {changes[key]}: leave it out, or resume with "
            "--allow-changes"
        )
    return with_changes(saved, changes)


def differences(saved: RunConfig, given: RunConfig) -> dict[str, Any]:
    """The settings of `given`, by dotted key, that differ from those of `saved`; what was left open does not."""
    from nanokimi.data.sources import with_absolute_paths

    given = replace(given, dataset=with_absolute_paths(given.dataset))
    then, now = settings(saved), settings(given)
    return {
        key: value
        for key, value in now.items()
        if value != then.get(key) and not (value in UNSET and key in then)
    }
