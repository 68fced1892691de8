"""What has changed in a run, or around it, since a checkpoint was saved: settings, data, plugins, kernels, records."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from nanokimi.config import FREE_WHEN_RESUMED, RunConfig
from nanokimi.config.parsing import settings
from nanokimi.config.rules_variant import plugins_of
from nanokimi.data.store import PreparedData
from nanokimi.errors import UserError
from nanokimi.runtime.c_compiler import why_not_compiled
from nanokimi.runtime.plugins import plugin_hashes
from nanokimi.train.state import TrainState, kernel_forms


def changes_since(stored: dict[str, Any], state: TrainState) -> list[str]:
    """What has changed since a checkpoint was saved, as "key = now, not then": settings, data, tokenizer, kernels."""
    changed = changed_since_checkpoint(stored, state.config, state.data).items()
    return [f"{key} = {now}, not {then}" for key, (now, then) in changed] + changed_kernels(stored, state)


def changed_since_checkpoint(
    stored: dict[str, Any], config: RunConfig, data: PreparedData
) -> dict[str, tuple[Any, Any]]:
    """The settings, data, tokenizer and plugins that changed since a checkpoint was saved: (now, then) by key.

    A setting that did not exist then counts as having had its present default.
    """
    defaults = settings(replace(RunConfig(), model=config.model))
    then = {**defaults, **stored["config"], **stored["data"]}
    now = {**settings(config), **data.fingerprint}
    if "scoring_sha256" in stored:  # an earlier version did not keep it, nor the plugins
        then["data.json or the documents' places"] = stored["scoring_sha256"]
        now["data.json or the documents' places"] = data.scoring_sha256
    if stored.get("plugins"):
        then["plugins"], now["plugins"] = stored["plugins"], plugin_hashes(plugins_of(config.family))
    changed = [key for key in now if key not in FREE_WHEN_RESUMED and then.get(key) != now[key]]
    return {key: (now[key], then.get(key)) for key in changed}


def changed_kernels(stored: dict[str, Any], state: TrainState) -> list[str]:
    """The mechanisms that another implementation computes now, whose last digits differ."""
    now, then = kernel_forms(state), stored.get("kernels", {})  # an earlier version kept no record of them
    why = f" ({reason})" if (reason := why_not_compiled()) else ""
    return [
        f"the implementation {now[name]!r} of {name}, not {then[name]!r}{why}"
        for name in now
        if name in then and then[name] != now[name]
    ]


def require_records(metrics: Path, stored: dict[str, Any], name: str) -> None:
    """Raise UserError if the records that a checkpoint's run had written are gone, shortened or changed."""
    size = stored["metrics_bytes"]
    present = metrics.stat().st_size if metrics.exists() else 0
    what = None if present >= size else "is shorter than it was" if present else "is gone or empty"
    if what is None and "metrics_sha256" in stored:  # an earlier version kept no hash
        what = None if beginning_sha256(metrics, size) == stored["metrics_sha256"] else "is not what it was"
    if what is not None:
        raise UserError(f"{metrics} {what} at {name}: put it back as it was, or start the run again")


def beginning_sha256(path: Path, size: int) -> str:
    """SHA-256 of the first `size` bytes of a file, which need not exist if they are none."""
    if not size:
        return hashlib.sha256().hexdigest()
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(size)).hexdigest()
