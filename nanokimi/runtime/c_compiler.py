"""Small C files, compiled on first use by the machine's compiler for its processor.

If there is no compiler, or `NANOKIMI_NATIVE` is 0, callers use a Python implementation. Libraries are kept in `native/`
of the cache folder ($NANOKIMI_CACHE or ~/.cache/nanokimi), under a hash of source, compiler and processor.
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
    """The functions of a C file, or None if it cannot be compiled.

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
    """The C compiler to use ($CC, cc, gcc or clang), or None if there is none or compiling is switched off."""
    if os.environ.get("NANOKIMI_NATIVE") == "0" or sys.platform == "win32":
        return None
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def default_cache_folder() -> Path:
    """$NANOKIMI_CACHE, or ~/.cache/nanokimi. Raises RuntimeError if there is no home folder."""
    return Path(os.environ.get("NANOKIMI_CACHE") or "~/.cache/nanokimi").expanduser()


def is_ours_alone(folder: Path) -> bool:
    """Whether no other user can have put a library or a folder in this place. Its libraries are run."""
    others, (own, above) = stat.S_IWGRP | stat.S_IWOTH, (folder.stat(), folder.parent.stat())
    # Where the sticky bit is set, as in /tmp, users can rename only their own files.
    exchangeable = above.st_mode & others and not above.st_mode & stat.S_ISVTX
    return own.st_uid == os.getuid() and not own.st_mode & others and not exchangeable


def identity(source: Path, compiler: str) -> str:
    """A hash of everything that the compiled library depends on."""
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
    """What -march=native depends on: the processor's name and abilities."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    wanted = ("model name", "flags", "Features")
    return "\n".join([platform.machine(), *sorted({line for line in lines if line.startswith(wanted)})])


def openmp() -> Path | None:
    """The OpenMP library that torch has loaded into this process. A second one would have its own threads."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    paths = [Path(line.split(maxsplit=5)[-1]) for line in lines]
    return next((path for path in paths if path.name.startswith(OPENMP_NAMES) and ".so" in path.name), None)


def compile_library(source: Path, compiler: str, library: Path) -> None:
    """Compile `source` into `library`, completely or not at all. Raises RuntimeError if that fails.

    If the loaded OpenMP does not suit the compiler (libgomp lacks clang's calls), the library uses one thread.
    """
    threads = openmp()
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        objects, linked = Path(folder) / "source.o", Path(folder) / library.name
        # Missing functions are then an error of the linker, not of loading the library.
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
    """The compiler's error message, empty if it succeeds."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit status {done.returncode}"
