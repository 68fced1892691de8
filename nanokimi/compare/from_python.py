"""A comparison from a notebook: `nanokimi.compare("text.txt", settings={"steps": 200})`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanokimi.compare.run import compare as train_arms
from nanokimi.config.arms import only_arms, with_arm_options
from nanokimi.config.files import load_config, refuse_another_kind
from nanokimi.config.ignored import refuse_ignored, split_arm_words
from nanokimi.data.own_parts import fitted_to_data
from nanokimi.errors import UserError
from nanokimi.runtime.files import default_run_folder, give_back_unused_folders


def compare(
    data: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    arms: str | Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train arms on the same text and write one report, as `nanokimi compare` does; returns report.json's content.

    Args:
        data: a text, a folder or a data set, as for --data; None: that of the configuration.
        out: a new folder; None: the next free one below runs/.
        config: a preset or a file, as for --config; None: "shakespeare-char".
        arms: train only this arm, or these.
        settings: by the words of the command line, such as {"steps": 200, "seeds": 3, "nanokimi.optim.lr": 2e-3}.
        resume: continue the comparison in `out`.

    Raises UserError for bad input, TrainingError if an arm failed.
    """
    given = {name: "null" if value is None else value for name, value in (settings or {}).items()}
    words = [f"--{name}={value}" for name, value in given.items()]
    if data is not None:
        words.append(f"--data={os.fspath(data)}")
    if resume:
        if out is None or config is not None or words or arms:
            raise UserError("a comparison is resumed with its own settings: give only out= and resume=True")
        return continue_comparison(Path(out).expanduser())
    name = "shakespeare-char" if config is None else os.fspath(config)
    shared, of_arm = split_arm_words(words)
    chosen = load_config(name, shared)
    if arms:
        chosen = only_arms(chosen, [arms] if isinstance(arms, str) else list(arms))
    chosen = with_arm_options(chosen, of_arm)
    refuse_ignored("compare", chosen, shared)
    chosen = fitted_to_data(chosen, words)
    if not chosen.dataset.path and not chosen.dataset.sources:
        raise UserError('no text given: name one as the first argument, or use "tales"')
    folder = default_run_folder("compare", Path(name).stem) if out is None else Path(out).expanduser()
    try:
        return train_arms(chosen, folder)
    finally:
        give_back_unused_folders()


def continue_comparison(folder: Path) -> dict[str, Any]:
    """Continue the comparison in `folder` with its own settings. Raises UserError if it holds none."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} holds no comparison to resume: it has no config.yaml")
    refuse_another_kind("compare", folder)
    return train_arms(load_config(str(folder / "config.yaml")), folder, resume=True)
