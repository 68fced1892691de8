"""The small C++ library of hooks.cpp: built for the installed torch on first use, kept in a folder of the user's."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

SOURCE = Path(__file__).with_name("hooks.cpp")


class NoCompiler(Exception):
    """The library cannot be built here; the message says why."""


def compiler() -> str | None:
    """The C++ compiler: CXX, c++, g++ or clang++."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def library() -> Path:
    """Where the library is, which may first have to be built (seconds). Does not import torch.

    Raises NoCompiler if there is no compiler, or it cannot compile torch's headers.
    """
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None
    torch = Path(found.origin).parent
    key = hashlib.sha256(f"{version('torch')} {torch}".encode() + SOURCE.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"nanokimi-pretend-device-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise NoCompiler(f"{folder} belongs to another user")
    built = folder / f"{key}.so"
    if not built.exists():
        build(torch, built)
    return built


def build(torch: Path, target: Path) -> None:
    """Compile hooks.cpp against the torch in a folder; processes may do so at the same time."""
    command = compiler()
    if command is None:
        raise NoCompiler("this machine has no C++ compiler")
    includes = [torch / "include", torch / "include/torch/csrc/api/include"]
    flags = ["-std=c++20", "-O0", "-fPIC", "-shared"]
    flags += [word for folder in includes for word in ("-isystem", str(folder))]
    links = [f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch"]
    own = target.with_suffix(f".{os.getpid()}")
    done = subprocess.run(
        [command, *flags, str(SOURCE), "-o", str(own), *links], capture_output=True, text=True
    )
    if done.returncode:
        raise NoCompiler(f"{command} cannot compile hooks.cpp: {done.stderr.strip().splitlines()[:1]}")
    own.rename(target)
