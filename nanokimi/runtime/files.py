"""Run folders and their files: atomic writes, JSON lines, checksums, a record of the environment."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from nanokimi.errors import UserError
from nanokimi.runtime.c_compiler import find_compiler

CHECKSUMS_FILE = "checksums.json"
MAX_FILE_BYTES = 1 << 28
"""Larger files are not read as JSON or as tokenizers."""
RECORDED_PACKAGES = ("nanokimi", "torch", "numpy", "sentencepiece", "safetensors")


def create_run_folder(out: str | Path) -> Path:
    """Create a folder for a run if it does not exist, and check that it can be written.

    Raises UserError if it cannot.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".nanokimi-write-test.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:
        raise UserError(cannot_make(folder, error)) from None
    return folder


def default_run_folder(verb: str, name: str) -> Path:
    """Make the first free `runs/VERB-NAME-N`, so that no other process takes it, and return it.

    `give_back_unused_folders` removes it if nothing came into it. Raises UserError if it cannot be made.
    """
    parent, number = Path("runs"), 1
    while True:
        folder = parent / f"{verb}-{name}-{number}"
        try:
            if not parent.exists():
                parent.mkdir(exist_ok=True)
                _claimed.append(parent.absolute())
            if not folder.exists():
                folder.mkdir()
                _claimed.append(folder.absolute())
                return folder
        except (
            FileExistsError,
            FileNotFoundError,
        ) as error:  # another process was faster, or gave `runs` back
            if not parent.is_dir() and parent.exists():
                raise UserError(cannot_make(folder, error)) from None
            continue
        except (OSError, ValueError) as error:
            raise UserError(cannot_make(folder, error)) from None
        number += 1


_claimed: list[Path] = []
"""The folders that this process made to have their names."""


def give_back_unused_folders() -> None:
    """Remove the folders that `default_run_folder` made and that are still empty."""
    for folder in sorted(_claimed, key=lambda path: -len(path.parts)):
        with suppress(OSError):
            folder.rmdir()
    _claimed.clear()


def first_missing(folder: Path) -> Path | None:
    """The outermost folder that has to be made so that `folder` exists; None if it does."""
    return next((p for p in [*reversed(folder.absolute().parents), folder] if not os.path.lexists(p)), None)


def remove_what_was_made(folder: Path, made: Path | None) -> None:
    """Remove a folder with its content, and its parents from `made` (see `first_missing`) on.

    If `made` is None, the folder was there before, and only its content is removed.
    """
    if made is not None:
        shutil.rmtree(made)
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def cannot_make(folder: Path, error: Exception) -> str:
    """The message for a run folder that cannot be made or written."""
    reason = getattr(error, "strerror", None) or error
    return f"cannot write the run folder {folder}: {reason}; choose another with --out"


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, even after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON. NaN and infinity, which JSON does not have, are an error."""
    write_atomic(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def cannot_write(error: OSError, folder: Path) -> str:
    """The message for something in `folder` that could not be written."""
    return f"cannot write {error.filename or folder}: {error.strerror or error}"


def read_bytes(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """The content of a file of at most `limit` bytes. Raises OSError, also for a device or a pipe."""
    try:
        status = os.stat(path)
    except ValueError as error:  # a NUL, or half a character, in the name
        raise OSError(errno.EINVAL, str(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    if status.st_size > limit:
        raise OSError(errno.EFBIG, f"it has {status.st_size} bytes, at most {limit} are expected")
    return path.read_bytes()


def parse_json(data: bytes) -> Any:
    """JSON as `write_json` writes it: UTF-8, no NaN, no infinity. Raises ValueError for anything else."""
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_finite, parse_float=_finite)
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
    """Add one record to a `.jsonl` file, completely or, if the disk is full, not at all."""
    line = (json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n").encode()
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        written = 0
        try:
            written = file.write(line)
            if written < len(line):  # the second call writes the rest, or raises the reason
                written += file.write(line[written:])
        finally:
            if written < len(line):
                file.truncate(before)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if path.is_dir() and sys.platform == "win32":
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDONLY if sys.platform != "win32" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(folder: Path) -> None:
    """Write the SHA-256 of every file of a folder into its checksums.json, and sync all of them."""
    sums = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    for name in sums:
        sync(folder / name)
    write_json(folder / CHECKSUMS_FILE, {"schema_version": 1, "sha256": sums})
    sync(folder)


def find_damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder (a file that is missing, extra or changed), or None."""
    try:
        sums = dict(read_json(folder / CHECKSUMS_FILE)["sha256"])
        present = {path.name for path in folder.iterdir()} - {CHECKSUMS_FILE}
        for name in sorted(present ^ set(sums)):
            return f"{name} is {'extra' if name in present else 'missing'}"
        for name, expected in sums.items():
            if file_sha256(folder / name) != expected:
                return f"{name} does not match its checksum"
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return f"{CHECKSUMS_FILE} is missing or damaged"
    return None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_links(folder: Path) -> None:
    """Refuse a folder that contains links, through which other files would be written, or pipes or devices.

    Raises UserError naming the first link.
    """
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if os.path.islink(os.path.join(root, name)):
                raise UserError(
                    f"{os.path.join(root, name)} is a link: a run folder to be continued must hold none, "
                    "because writing to it would change another file; put the file itself there"
                )
        for name in files:
            if not os.path.isfile(os.path.join(root, name)):
                raise UserError(f"{os.path.join(root, name)} is a device or a pipe, not a file: remove it")


def read_json_lines(path: Path, *, growing: bool = False) -> list[dict[str, Any]]:
    """All records of a `.jsonl` file, in order. Raises UserError if it is missing or a line is not a record.

    If it is `growing`, another process may be writing its last line, which is left out until it is whole.
    """
    records: list[dict[str, Any]] = []
    try:
        lines = read_bytes(path, 1 << 31).split(b"\n")
        for line in lines[:-1] if growing else lines:
            if line:
                record = parse_json(line)
                if not isinstance(record, dict):
                    raise ValueError("the next line is not a record")
                records.append(record)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged after {len(records)} records ({error})") from None
    return records


def describe_environment(device: str = "cpu") -> dict[str, Any]:
    """The environment of a run on a device: versions, processor, GPU, commit, and the command that started it."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["nanokimi", *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "gpu": _gpu_record(device),
        "c_compiler": find_compiler() is not None,
        "packages": {name: _version(name) for name in RECORDED_PACKAGES},
        **_git_record(Path(__file__).resolve().parents[2]),
    }


def _gpu_record(device: str) -> dict[str, Any] | None:
    if device == "cpu":
        return None
    import torch  # takes a second, which a command that needs no model should not wait for

    from nanokimi.runtime.gpu import describe_gpu

    return describe_gpu(torch.device(device))


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
    """The commit of the source tree and a hash of uncommitted changes. None outside a checkout."""
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
