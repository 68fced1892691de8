"""C beside Python: a small source file, compiled on first use by the machine's own compiler for its own processor.

For what is many small operations in Python. Every C function has a plain form beside it that does the same; where there
is no compiler, or `NANOKIMI_NATIVE` is 0, that one runs. Libraries are kept in `native/` of the cache folder
($NANOKIMI_CACHE or ~/.cache/nanokimi), under a hash of source, compiler and processor.
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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# No -ffast-math: linking with it would flush denormals in the whole process. These two let sums be reordered.
FLAGS = ("-O3", "-march=native", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
OPENMP_NAMES = ("libgomp", "libomp", "libiomp5")
COMPILE_SECONDS = 120
KERNELS = Path(__file__).parents[1] / "kernels"
TRAINING_KERNELS = ("rms_norm", "attention", "experts", "muon")


@cache
def native_library(source: Path) -> ctypes.CDLL | None:
    """The functions of a C file, or None where it cannot be compiled: then the caller takes its plain form.

    The first call takes a second, or some milliseconds if the file was compiled before.
    """
    compiler = find_compiler()
    if compiler is None:
        return None
    try:
        folder = cache_folder() / "native"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_ours_alone(folder):
            return None
        library = folder / f"{source.stem}-{identity(source, compiler)}.so"
        if not library.exists():
            compile_library(source, compiler, library)
        return ctypes.CDLL(str(library))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


def compile_training_kernels() -> None:
    """Have what a training step in bf16 on the CPU takes compiled before a clock runs: seconds, once on a machine."""
    for name in TRAINING_KERNELS:
        native_library(KERNELS / f"{name}.c")


def struct(integers: str, floats: str, addresses: str) -> type[ctypes.Structure]:
    """A struct of C by the names of its members, in their order: longs, then doubles, then pointers."""
    kinds = ((integers, ctypes.c_long), (floats, ctypes.c_double), (addresses, ctypes.c_void_p))
    fields = [(name, kind) for names, kind in kinds for name in names.split()]
    return type("Layer", (ctypes.Structure,), {"_fields_": fields})


def pointers(*tensors: torch.Tensor) -> list[ctypes.c_void_p]:
    """Where contiguous tensors lie, as arguments of a C function; they must live until it returns."""
    assert all(tensor.is_contiguous() for tensor in tensors), "C reads what lies in a row"
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def find_compiler() -> str | None:
    """The C compiler to use: $CC, cc, gcc or clang; None if there is none, or compiling is switched off."""
    if os.environ.get("NANOKIMI_NATIVE") == "0" or sys.platform == "win32":
        return None
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def cache_folder() -> Path:
    """Where compiled libraries go: the folder of prepared data, unless a setting of a run names another for those."""
    named = os.environ.get("NANOKIMI_CACHE")
    return (Path(named) if named else Path("~/.cache/nanokimi")).expanduser()


def is_ours_alone(folder: Path) -> bool:
    """Whether nobody else could have put a library into the folder: what lies there is run."""
    facts = folder.stat()
    return facts.st_uid == os.getuid() and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


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
    """The OpenMP library that this process has loaded (torch's own): a second one would have threads of its own."""
    maps = Path("/proc/self/maps")
    paths = [Path(line.split()[-1]) for line in maps.read_text().splitlines()] if maps.exists() else []
    return next((path for path in paths if path.name.startswith(OPENMP_NAMES) and ".so" in path.name), None)


def compile_library(source: Path, compiler: str, library: Path) -> None:
    """Compile `source` into `library`, which appears whole or not at all. Raises RuntimeError if it cannot be."""
    threads = openmp()
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        objects, linked = Path(folder) / "source.o", Path(folder) / library.name
        parallel = ["-fopenmp"] if threads is not None else []
        commands = [
            [compiler, *FLAGS, *parallel, "-c", str(source), "-o", str(objects)],
            [
                compiler,
                "-shared",
                str(objects),
                *([str(threads)] if threads else []),
                "-lm",
                "-o",
                str(linked),
            ],
        ]
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
            if done.returncode != 0:
                raise RuntimeError(f"{command[0]} fails on {source.name}: {done.stderr.strip()}")
        os.replace(linked, library)
