"""C files are compiled once, found again, and never half written; without a compiler there is none, and no error."""

from __future__ import annotations

import ctypes
import re
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
    native.native_library.cache_clear()
    yield tmp_path / "cache" / "native"
    native.native_library.cache_clear()


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
    native.native_library.cache_clear()
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
    native.native_library.cache_clear()
    library = native.native_library(path)
    assert library is not None and library.answer() == 42


@needs_compiler
def test_another_source_or_header_is_another_library(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "number.h").write_text("enum { NUMBER = 1 };\n")
    path = source(tmp_path, '#include "number.h"\nint answer(void) { return NUMBER; }\n')
    first = native.native_library(path)
    native.native_library.cache_clear()
    (tmp_path / "number.h").write_text("enum { NUMBER = 2 };\n")
    second = native.native_library(path)
    assert first is not None and second is not None
    assert (first.answer(), second.answer()) == (1, 2) and len(list(cache.iterdir())) == 2


@needs_compiler
def test_a_file_that_does_not_compile_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    assert native.native_library(source(tmp_path, "this is no C\n")) is None
    assert list(cache.iterdir()) == []


@needs_compiler
def test_a_folder_that_cannot_be_written(tmp_path: Path, cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    assert native.native_library(source(tmp_path, GOOD)) is None


@needs_compiler
def test_a_folder_that_others_can_write_is_not_trusted(tmp_path: Path, cache: Path) -> None:
    path = source(tmp_path, GOOD)
    assert native.native_library(path) is not None
    for folder, mode, trusted in (
        (cache, 0o777, False),
        (cache, 0o700, True),
        (cache.parent, 0o777, False),
        (cache.parent, 0o1777, True),
    ):
        folder.chmod(mode)
        native.native_library.cache_clear()
        assert (native.native_library(path) is not None) == trusted


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


@pytest.mark.parametrize("variable, value", [("NANOKIMI_NATIVE", "0"), ("PATH", "")])
def test_no_compiler_no_library(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv(variable, value)
    assert native.native_library(source(tmp_path, GOOD)) is None
    assert not cache.exists()


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
