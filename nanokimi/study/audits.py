"""The audit before a study's training: each architecture once, its verdict kept in the study's folder.

A repeated study reads a verdict from there, as it reads finished runs. With another version of torch, of nanokimi or of
the user's class, the architecture is audited again.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

import nanokimi
from nanokimi.config import RunConfig
from nanokimi.config.parsing import settings
from nanokimi.config.rules_variant import is_plugin
from nanokimi.errors import UserError
from nanokimi.kernels.accelerate import accelerate_
from nanokimi.measure.audit_confirm import NONDETERMINISTIC, UNDECIDED
from nanokimi.model.build import build_model
from nanokimi.runtime.files import read_json, write_json
from nanokimi.runtime.plugins import plugin_hashes
from nanokimi.runtime.text import visible_line
from nanokimi.study.study import Study, StudyArm
from nanokimi.train.audits import audit_run, audit_users, built_if_users

AUDITS_FILE = "audits.json"


def with_leaks_found(arms: Sequence[StudyArm], study: Study) -> list[StudyArm]:
    """The arms with what the audit found. Each architecture is audited once, before training: a leaking one is skipped.

    Raises UserError if an arm's model gives different logits for the same ids, or if nobody can tell whether it leaks.
    """
    path = study.folder / AUDITS_FILE
    kept = read_audits(path)
    keys = {arm.name: audit_key(arm.config, study.data.fingerprint) for arm in arms}
    wanted = {key: name for name, key in reversed(keys.items()) if key not in kept}
    for number, arm in enumerate((arm for arm in arms if wanted.get(keys[arm.name]) == arm.name), start=1):
        print(f"auditing {visible_line(arm.name)} ({number} of {len(wanted)} architectures)", file=sys.stderr)
        users = built_if_users(arm.config)
        built = users or build_model(arm.config.family.model, arm.config.seed)
        accelerate_(built, dtype=arm.config.train.dtype)
        found = (audit_run if users is None else audit_users)(built, arm.config, study.data)
        if found.verdict == NONDETERMINISTIC:
            raise UserError(f"{arm.name} is {found.verdict}, so no run could be repeated: {found.where}")
        if found.verdict == UNDECIDED:
            raise UserError(
                f"{arm.name} is {found.verdict}, so its losses could not be ranked: {found.where}"
            )
        kept[keys[arm.name]] = None if found.causal else found.where
        write_json(path, kept)
    return [replace(arm, leaking=kept[keys[arm.name]]) for arm in arms]


def read_audits(path: Path) -> dict[str, str | None]:
    """Where each architecture leaks, or None, by `audit_key`. Raises UserError if the file holds anything else."""
    kept = read_json(path) if path.exists() else {}
    if not isinstance(kept, dict) or not all(isinstance(where, str | None) for where in kept.values()):
        raise UserError(f"{path} is not the file that the study wrote: delete it to audit again")
    return kept


def audit_key(config: RunConfig, fingerprint: dict[str, str]) -> str:
    """A hash of everything that an audit depends on: architecture, shape of the windows, dtype, text and code."""
    train, model = config.train, f"{config.model}.model."
    architecture = {key: value for key, value in settings(config).items() if key.startswith(model)}
    classes = [value for value in architecture.values() if isinstance(value, str) and is_plugin(value)]
    content: dict[str, Any] = {
        "model": architecture,
        "plugins": plugin_hashes(classes),
        "shape": [train.context_length, train.eval_batch_size, train.dtype],
        "data": fingerprint,
        "code": [torch.__version__, sources_hash()],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@cache
def sources_hash() -> str:
    """A hash of nanokimi's own sources, in Python and C."""
    folder, found = Path(nanokimi.__file__).parent, hashlib.sha256()
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.[ch]")]):
        found.update(path.read_bytes())
    return found.hexdigest()
