"""C files are compiled once, found again, and never half written; where they cannot be, a line says so."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest

from nanokimi.kernels import attention, decode_gpt, decode_kimi, experts, muon, rms_norm
from nanokimi.kernels.structs import KERNELS
from nanokimi.runtime import c_compiler as native

GOOD = "int answer(void) { return 42; }\n"
needs_compiler = pytest.mark.skipif(native.find_compiler() is None, reason="no C compiler on this machine")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and nothing remembered in the process."""
    monkeypatch.setenv("NANOKIMI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir(mode=0o700)
    monkeypatch.setattr(native, "_said", [])
    monkeypatch.setattr(native, "_problems", {})
    forget()
    yield tmp_path / "cache" / "native"
    forget()


def forget() -> None:
    """As in a new process."""
    native._native_library.cache_clear()


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What was written to standard error, which is one line or nothing."""
    error = capsys.readouterr().err
    assert error.count("\n") <= 1
    return error


def source(folder: Path, text: str) -> Path:
    path = folder / "one.c"
    path.write_text(text)
    return path


@needs_compiler
def test_a_file_is_compiled_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = source(tmp_path, GOOD)
    library = native.native_library(path)
    assert library is not None and library.answer() == 42
    (kept,) = cache.iterdir()
    forget()
    monkeypatch.setattr(native, "compile_library", lambda *_: pytest.fail("compiled again"))
    again = native.native_library(path)
    assert again is not None and again.answer() == 42 and list(cache.iterdir()) == [kept]


@needs_compiler
def test_a_damaged_library_is_compiled_anew(tmp_path: Path, cache: Path) -> None:
    path = source(tmp_path, GOOD)
    assert native.native_library(path) is not None
    (kept,) = cache.iterdir()
    kept.unlink()  # not overwritten: this process has it mapped
    kept.write_bytes(b"torn")
    forget()
    library = native.native_library(path)
    assert library is not None and library.answer() == 42


@needs_compiler
def test_another_source_or_header_is_another_library(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "number.h").write_text("enum { NUMBER = 1 };\n")
    path = source(tmp_path, '#include "number.h"\nint answer(void) { return NUMBER; }\n')
    first = native.native_library(path)
    forget()
    (tmp_path / "number.h").write_text("enum { NUMBER = 2 };\n")
    second = native.native_library(path)
    assert first is not None and second is not None
    assert (first.answer(), second.answer()) == (1, 2) and len(list(cache.iterdir())) == 2


@needs_compiler
def test_a_file_that_does_not_compile_leaves_nothing_and_is_said_once(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = source(tmp_path, "this is no C\n")
    assert native.native_library(path) is None and native.native_library(path) is None
    assert list(cache.iterdir()) == []
    line = said(capsys)
    assert "fails on one.c" in line and "$CC" in line and "slower" in line and len(line) < 500
    assert native.why_not_compiled() in line


@needs_compiler
def test_a_folder_that_cannot_be_written_is_not_needed(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Libraries are then in a private folder for temporary files, which the next process finds."""
    cache.parent.write_text("a file where the folder should be")
    path = source(tmp_path, GOOD)
    assert native.native_library(path) is not None
    (private,) = (tmp_path / "temporary").iterdir()
    assert len(list(private.iterdir())) == 1 and private.stat().st_mode & 0o777 == 0o700
    forget()
    assert native.native_library(path) is not None and said(capsys) == ""
    private.chmod(0o777)
    forget()
    assert native.native_library(path) is None
    line = said(capsys)
    assert str(cache.parent) in line and "$NANOKIMI_CACHE" in line


@needs_compiler
def test_a_folder_that_others_can_write_is_not_trusted(tmp_path: Path, cache: Path) -> None:
    path = source(tmp_path, GOOD)
    assert native.native_library(path) is not None
    (planted,) = cache.iterdir()
    for folder, mode, trusted in (
        (cache, 0o777, False),
        (cache, 0o775, False),
        (cache, 0o700, True),
        (cache.parent, 0o777, False),
        (cache.parent, 0o1777, True),
    ):
        folder.chmod(mode)
        forget()
        library = native.native_library(path)
        assert library is not None and (Path(library._name) == planted) == trusted, (folder, oct(mode))


@needs_compiler
def test_a_link_in_the_folder_for_temporary_files_is_not_followed(tmp_path: Path, cache: Path) -> None:
    """Whoever made it could let it lead elsewhere later."""
    cache.parent.write_text("a file where the folder should be")
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "temporary" / f"nanokimi-native-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    assert native.native_library(source(tmp_path, GOOD)) is None


@needs_compiler
@pytest.mark.parametrize("umask", [0o002, 0o022, 0o000, 0o077])
def test_folders_of_ours_are_private_whatever_the_umask(umask: int, tmp_path: Path, cache: Path) -> None:
    """With Ubuntu's 002 they were writable for the group, so they were not trusted and nothing was compiled."""
    from nanokimi.config import DatasetConfig
    from nanokimi.data.cache import cache_folder

    before = os.umask(umask)
    try:
        made = cache_folder(DatasetConfig(cache=str(tmp_path / "a" / "b"))), cache_folder(DatasetConfig())
        library = native.native_library(source(tmp_path, GOOD))
    finally:
        os.umask(before)
    assert library is not None and Path(library._name).parent == cache
    for folder in (*made, made[0].parent, cache):
        assert folder.stat().st_mode & 0o777 == 0o700


@needs_compiler
def test_a_folder_from_which_no_program_may_run_is_not_needed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = ctypes.CDLL

    def refuse(path: str) -> ctypes.CDLL:
        if Path(path).parent in refused:
            raise OSError(f"{path}: failed to map segment from shared object")
        return original(path)

    refused = [cache]
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    path = source(tmp_path, GOOD)
    library = native.native_library(path)
    assert library is not None and library.answer() == 42 and said(capsys) == ""
    refused.append(Path(library._name).parent)
    forget()
    assert native.native_library(path) is None
    line = said(capsys)
    assert "failed to map segment" in line and "from which programs may run" in line


@needs_compiler
def test_threads_are_those_of_torch(tmp_path: Path, cache: Path) -> None:
    """The library uses the OpenMP that torch has loaded, not one more."""
    import torch

    if native.openmp() is None:
        pytest.skip("this torch has no OpenMP that could be found")
    path = source(tmp_path, "#include <omp.h>\nint most(void) { return omp_get_max_threads(); }\n")
    library = native.native_library(path)
    assert library is not None
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert library.most() == 3
    finally:
        torch.set_num_threads(before)


def test_files_in_memory_need_no_names_in_utf8(tmp_path: Path) -> None:
    before = native.openmp()
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    path.write_bytes(b"as the tokens of a run in a folder of such a name")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        assert native.openmp() == before


@pytest.mark.parametrize("variable, value", [("NANOKIMI_NATIVE", "0"), ("PATH", "")])
def test_no_compiler_no_library(
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv(variable, value)
    assert native.native_library(source(tmp_path, GOOD)) is None
    assert not cache.exists()
    assert said(capsys) == "" if variable == "NANOKIMI_NATIVE" else "install one" in said(capsys)


def test_a_compiler_that_fails_is_said(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\necho 'no licence\nfor today' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert native.native_library(source(tmp_path, GOOD)) is None
    line = said(capsys)
    assert "broken-cc fails on one.c: no licence for today" in line and "$CC" in line


def test_a_compiler_that_hangs_is_said(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hang(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, 120)

    monkeypatch.setenv("CC", "sh")
    monkeypatch.setattr(subprocess, "run", hang)
    assert native.native_library(source(tmp_path, GOOD)) is None
    assert "timed out" in said(capsys)


STRUCTS = [
    ("decode_kimi.c", "Layer", decode_kimi.KimiLayer),
    ("decode_gpt.c", "Layer", decode_gpt.GPTLayer),
    ("experts.c", "Layer", experts.ExpertsLayer),
    ("attention.c", "Layer", attention.AttentionLayer),
    ("attention.c", "Heads", attention.Heads),
    ("rms_norm.c", "Layer", rms_norm.NormLayer),
    ("muon.c", "Stack", muon.Stack),
]
KINDS = {"long": ctypes.c_long, "double": ctypes.c_double, "*": ctypes.c_void_p}


@pytest.mark.parametrize(("file", "name", "struct"), STRUCTS)
def test_structs_of_python_are_those_of_c(file: str, name: str, struct: type[ctypes.Structure]) -> None:
    """The members of a C struct are Python's, in their order, of the same types."""
    text = (KERNELS / file).read_text()
    end = text.index(f"}} {name};")
    body = re.sub("//.*", "", text[text.rindex("typedef struct {", 0, end) : end]).partition("{")[2]
    members = []
    for declaration in filter(None, (line.strip() for line in body.split(";"))):
        kind = "*" if "*" in declaration else declaration.split()[0]
        names = re.sub(r"^(const )?\w+ ", "", declaration).replace("*", "").split(",")
        members += [(member.strip(), KINDS[kind]) for member in names]
    assert members == struct._fields_
