"""Run folders and what is written into them: atomic files, JSON lines, a record of the environment."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import shlex
import stat
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from nanokimi.errors import UserError

MAX_FILE_BYTES = 1 << 28
"""Larger files of JSON, or tokenizers, are no such files."""
RECORDED_PACKAGES = ("nanokimi", "torch", "numpy", "sentencepiece", "safetensors")


def create_run_folder(out: str | Path) -> Path:
    """Make a new, empty run folder; a folder that already holds something is never written into.

    Raises UserError if `out` is taken or cannot be made.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
        probe = folder / ".nanokimi-write-test"
        if not taken:
            probe.touch()
            probe.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot write the run folder {folder}: {reason}; choose another with --out"
        ) from None
    if taken:
        raise UserError(
            f"{folder} already holds files and a run never overwrites another: choose another --out"
        )
    return folder


def default_run_folder(verb: str, name: str) -> Path:
    """The first free `runs/VERB-NAME-N`."""
    number = 1
    while (folder := Path("runs") / f"{verb}-{name}-{number}").exists():
        number += 1
    return folder


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one and nothing between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON; NaN and infinity, which JSON lacks, are an error."""
    write_atomic(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_bytes(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """The content of a file of at most `limit` bytes. Raises OSError for anything else (a device, a pipe) as well."""
    try:
        status = os.stat(path)
    except ValueError as error:  # a NUL, or half a character, in the name
        raise OSError(errno.EINVAL, str(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    if status.st_size > limit:
        raise OSError(errno.EFBIG, f"it has {status.st_size} bytes, at most {limit} are expected")
    return path.read_bytes()


def parse_json(text: str | bytes) -> Any:
    """JSON as `write_json` writes it: no NaN, no infinity. Raises ValueError for anything else."""
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"it holds the number {number[:40]}")
    return value


def read_json(path: Path) -> Any:
    """Read JSON. Raises UserError if the file is missing or broken."""
    try:
        return parse_json(read_bytes(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): the file is damaged") from None


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """Add one record to a `.jsonl` file."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All records of a `.jsonl` file, in order. Raises UserError if it is missing, or a line is no record."""
    records: list[dict[str, Any]] = []
    try:
        for number, line in enumerate(read_bytes(path, 1 << 31).split(b"\n"), start=1):
            if line:
                records.append(parse_json(line))
                if not isinstance(records[-1], dict):
                    raise ValueError("it is no record")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} line {number} is damaged ({error})") from None
    return records


def describe_environment() -> dict[str, Any]:
    """Where a run happened: versions, processor, commit, and the command that started it."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["nanokimi", *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "packages": {name: _version(name) for name in RECORDED_PACKAGES},
        **_git_record(Path(__file__).resolve().parents[2]),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git_record(root: Path) -> dict[str, str | None]:
    """The commit of the source tree, and a hash of what was changed since; None outside a checkout."""
    if not (root / ".git").exists():
        return {"commit": None, "diff_sha256": None}
    try:
        commit = _git(root, "rev-parse", "HEAD").decode().strip()
        changes = _git(root, "diff", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "diff_sha256": None}
    return {"commit": commit, "diff_sha256": hashlib.sha256(changes).hexdigest() if changes else None}


def _git(root: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=True).stdout
