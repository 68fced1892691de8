"""A small C file, compiled on first use by the machine's own compiler for its own processor.

Where there is no compiler, or `NANOKIMI_NATIVE` is 0, callers run a Python form. Libraries are kept in
`native/` of the cache folder ($NANOKIMI_CACHE or ~/.cache/nanokimi), under a hash of source, compiler and processor.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

# No -ffast-math: linking with it would flush denormals in the whole process.
FLAGS = ("-O3", "-march=native", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd")
OPENMP_NAMES = ("libgomp", "libomp", "libiomp5")
COMPILE_SECONDS = 120


@cache
def native_library(source: Path) -> ctypes.CDLL | None:
    """The functions of a C file, or None where it cannot be compiled.

    The first call takes a second, or some milliseconds if the file was compiled before.
    """
    compiler = find_compiler()
    if compiler is None:
        return None
    try:
        folder = default_cache_folder() / "native"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_ours_alone(folder):
            return None
        library = folder / f"{source.stem}-{identity(source, compiler)}.so"
        if library.exists() and (loaded := load(library)) is not None:
            return loaded
        compile_library(source, compiler, library)
        return load(library)
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


def load(library: Path) -> ctypes.CDLL | None:
    """A compiled library, or None if the file is damaged."""
    try:
        return ctypes.CDLL(str(library))
    except OSError:
        return None


def find_compiler() -> str | None:
    """The C compiler to use: $CC, cc, gcc or clang; None if there is none, or compiling is switched off."""
    if os.environ.get("NANOKIMI_NATIVE") == "0" or sys.platform == "win32":
        return None
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def default_cache_folder() -> Path:
    """$NANOKIMI_CACHE, or ~/.cache/nanokimi. Raises RuntimeError for the home of nobody."""
    return Path(os.environ.get("NANOKIMI_CACHE") or "~/.cache/nanokimi").expanduser()


def is_ours_alone(folder: Path) -> bool:
    """Whether nobody else could have put a library, or another folder, in this place: what lies there is run."""
    others, (own, above) = stat.S_IWGRP | stat.S_IWOTH, (folder.stat(), folder.parent.stat())
    # Where the sticky bit is set, as in /tmp, nobody can rename what is not theirs.
    exchangeable = above.st_mode & others and not above.st_mode & stat.S_ISVTX
    return own.st_uid == os.getuid() and not own.st_mode & others and not exchangeable


def identity(source: Path, compiler: str) -> str:
    """A hash of all that decides what the library is."""
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=COMPILE_SECONDS).stdout
    files = [source, *sorted(source.parent.glob("*.h"))]
    parts = [
        *(file.read_bytes() for file in files),
        version,
        processor().encode(),
        " ".join(FLAGS).encode(),
        str(openmp()).encode(),
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def processor() -> str:
    """What -march=native goes by: the processor's name and abilities."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    wanted = ("model name", "flags", "Features")
    return "\n".join([platform.machine(), *sorted({line for line in lines if line.startswith(wanted)})])


def openmp() -> Path | None:
    """The OpenMP library that this process has loaded, torch's: a second one would have threads of its own."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    paths = [Path(line.split(maxsplit=5)[-1]) for line in lines]
    return next((path for path in paths if path.name.startswith(OPENMP_NAMES) and ".so" in path.name), None)


def compile_library(source: Path, compiler: str, library: Path) -> None:
    """Compile `source` into `library`, which appears whole or not at all. Raises RuntimeError if it cannot be.

    Where compiler and loaded OpenMP do not go together (clang's calls are not in libgomp), one thread has to do.
    """
    threads = openmp()
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        objects, linked = Path(folder) / "source.o", Path(folder) / library.name
        # What is missing shows now, not when the library is loaded.
        whole = ["-Wl,-z,defs"] if sys.platform == "linux" else []
        problem = ""
        for parallel in ([["-fopenmp"]] if threads is not None else []) + [[]]:
            libraries = [str(threads)] if parallel else []
            commands = [
                [compiler, *FLAGS, *parallel, "-c", str(source), "-o", str(objects)],
                [compiler, "-shared", *whole, str(objects), *libraries, "-lm", "-o", str(linked)],
            ]
            problem = next(filter(None, map(run_compiler, commands)), "")
            if not problem:
                os.replace(linked, library)
                return
    raise RuntimeError(f"{compiler} fails on {source.name}: {problem}")


def run_compiler(command: list[str]) -> str:
    """What the compiler complains about; nothing if all is well."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit status {done.returncode}"
