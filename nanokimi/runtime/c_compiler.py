"""Small C files, compiled on first use by the machine's compiler for its processor.

If there is no compiler, or `NANOKIMI_NATIVE` is 0, callers use a Python implementation. Libraries are kept in `native/`
of the cache folder ($NANOKIMI_CACHE or ~/.cache/nanokimi), under a hash of source, compiler and processor; where that
is not safe or cannot be used, in a private folder for temporary files. Without a library there is a reason, which is
said once on standard error (`why_not_compiled`).
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

from nanokimi.runtime.text import one_line

# No -ffast-math: linking with it would flush denormals in the whole process.
FLAGS = ("-O3", "-march=native", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd")
OPENMP_NAMES = ("libgomp", "libomp", "libiomp5")
COMPILE_SECONDS = 120
SWITCHED_OFF, NOT_ON_WINDOWS = "NANOKIMI_NATIVE is 0", "not on Windows"
OTHER_FOLDER = "name a folder of yours from which programs may run in $NANOKIMI_CACHE"
OTHER_COMPILER = "name another compiler with $CC"
LONGEST_COMPLAINT = 160
"""Characters of a compiler's message."""

_problems: dict[Path, str] = {}
_said: list[str] = []


def native_library(source: Path) -> ctypes.CDLL | None:
    """The functions of a C file, or None if it cannot be compiled; `why_not_compiled` then has the reason.

    The first call takes a second, or some milliseconds if the file was compiled before.
    """
    library = _native_library(source)
    if library is None:
        say_once(_problems[source])
    return library


@cache
def _native_library(source: Path) -> ctypes.CDLL | None:
    try:
        return find_or_compile(source)
    except subprocess.SubprocessError as error:
        _problems[source] = f"{one_line(error)}: {OTHER_COMPILER}"
    except (OSError, RuntimeError) as error:
        _problems[source] = one_line(error)
    return None


def find_or_compile(source: Path) -> ctypes.CDLL:
    """The library of a C file from the first folder that has it, or else compiled into the first that takes it.

    Raises RuntimeError, OSError or SubprocessError if there is none.
    """
    if os.environ.get("NANOKIMI_NATIVE") == "0":
        raise RuntimeError(SWITCHED_OFF)
    if sys.platform == "win32":
        raise RuntimeError(NOT_ON_WINDOWS)
    compiler = find_compiler()
    if compiler is None:
        raise RuntimeError("there is no C compiler: install one (cc, gcc or clang)")
    name = f"{source.stem}-{identity(source, compiler)}.so"
    for folder in native_folders():
        if is_ours_alone(folder) and (folder / name).exists() and (loaded := load(folder / name)) is not None:
            return loaded
    problems: list[str] = []
    for folder in native_folders():
        try:
            make_private_folder(folder)
            if is_ours_alone(folder):
                compile_library(source, compiler, folder / name)
                return ctypes.CDLL(str(folder / name))
            problems.append(f"other users could exchange what is in {folder}: {OTHER_FOLDER}")
        except OSError as error:
            reason = f"{error.filename or folder}: {error.strerror}" if error.strerror else str(error)
            problems.append(f"{reason}: {OTHER_FOLDER}")
        except RuntimeError as error:
            problems.append(f"{error}: {OTHER_COMPILER}")
    raise RuntimeError(problems[0])


def native_folders() -> list[Path]:
    """Where libraries may be: in the cache folder, and in a folder for temporary files."""
    try:
        cached = [default_cache_folder() / "native"]
    except RuntimeError:  # there is no home folder
        cached = []
    return [*cached, Path(tempfile.gettempdir()) / f"nanokimi-native-{os.getuid()}"]


def make_private_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, which only this user may enter, whatever the umask is.

    A folder that exists stays as it is. Raises OSError if one cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        try:
            path.mkdir(mode=0o700)
            path.chmod(0o700)
        except FileExistsError:  # another process made it in the meantime
            continue


def why_not_compiled() -> str | None:
    """Why this process lacks C kernels that it wanted; None if it lacks none."""
    return next(iter(_problems.values()), None)


def say_once(reason: str) -> None:
    """Tell the user, once in a process, that it is slower than it could be, unless that was asked for."""
    if _said or reason in (SWITCHED_OFF, NOT_ON_WINDOWS):
        return
    _said.append(reason)
    slower = "nanokimi: kernels in C are not used, so some of this is slower"
    print(f"{slower}: {reason} (NANOKIMI_NATIVE=0: no kernels in C, and no such line)", file=sys.stderr)


def say_nothing() -> None:
    """Leave it to the parent process to tell the user."""
    _said.append("")


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
    try:
        own, above = folder.lstat(), folder.parent.stat()
    except OSError:
        return False
    others = stat.S_IWGRP | stat.S_IWOTH
    # Where the sticky bit is set, as in /tmp, users can rename only their own files.
    exchangeable = above.st_mode & others and not above.st_mode & stat.S_ISVTX
    ours = stat.S_ISDIR(own.st_mode) and own.st_uid == os.getuid()
    return ours and not own.st_mode & others and not exchangeable


def identity(source: Path, compiler: str) -> str:
    """A hash of everything that the compiled library depends on."""
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=COMPILE_SECONDS).stdout
    files = [source, *sorted(source.parent.glob("*.h"))]
    parts = [
        *(file.read_bytes() for file in files),
        version,
        processor().encode(),
        " ".join(FLAGS).encode(),
        os.fsencode(str(openmp())),
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
    # It names every file in memory, whose folders need not have names in UTF-8.
    lines = os.fsdecode(maps.read_bytes()).splitlines() if maps.exists() else []
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
    raise RuntimeError(f"{compiler} fails on {source.name}: {one_line(problem)[:LONGEST_COMPLAINT]}")


def run_compiler(command: list[str]) -> str:
    """The compiler's error message, empty if it succeeds."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit status {done.returncode}"
