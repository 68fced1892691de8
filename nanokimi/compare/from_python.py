"""A comparison from a notebook: `nanokimi.compare("text.txt", settings={"steps": 200})`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanokimi.compare.run import compare as train_arms
from nanokimi.config.arms import only_arms
from nanokimi.config.files import load_config
from nanokimi.errors import UserError
from nanokimi.runtime.files import default_run_folder


def compare(
    data: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    config: str = "shakespeare-char",
    arms: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train arms on the same text and write one report, as `nanokimi compare` does; returns report.json's content.

    Args:
        data: a text, a folder or a data set, as for --data; None: that of the configuration.
        out: a new folder; None: the next free one below runs/.
        config: a preset or a file, as for --config.
        arms: train only these arms.
        settings: by the words of the command line, such as {"steps": 200, "seeds": 3, "nanokimi.optim.lr": 2e-3}.
        resume: continue the comparison in `out`.

    Raises UserError for bad input, TrainingError if an arm failed.
    """
    words = [f"--{name}={value}" for name, value in (settings or {}).items()]
    if data is not None:
        words.append(f"--data={os.fspath(data)}")
    if resume and (out is None or words or arms):
        raise UserError("a comparison is resumed with its own settings: give only out= and resume=True")
    if resume:
        folder = Path(str(out)).expanduser()
        return train_arms(load_config(str(folder / "config.yaml")), folder, resume=True)
    chosen = load_config(config, words)
    if arms:
        chosen = only_arms(chosen, list(arms))
    if not chosen.dataset.path:
        raise UserError('no text given: name one as the first argument, or use "tales"')
    folder = default_run_folder("compare", Path(config).stem) if out is None else Path(out).expanduser()
    return train_arms(chosen, folder)
